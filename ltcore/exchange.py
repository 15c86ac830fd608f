"""A ticket's weights into a model: paired, proved, written, or refused with nothing changed."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.errors import (
    InvalidValueError,
    LtcoreError,
    MatchError,
    NotPortableError,
    ProbeMismatchError,
)
from ltcore.masks import Masks
from ltcore.matching import match_by_graph, match_by_name
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.probe import Probe, check_outputs, probe_inputs, synthetic_params, tolerance_for
from ltcore.ticketfile import TicketRecord

Weights: TypeAlias = Literal["ticket", "keep", "reinit"]
"""Which values a model gets: the ticket's, the ones it has, or fresh ones (a control)."""

TRAINING_ATTRIBUTES = ("momentum",)
"""Attributes of sites that outputs do not show."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which site of a ticket is which site of a model.

    Attributes:
        source: the ticket's structure.
        target: the model's.
        sites: ``{ticket site: model site}``.
        by_graph: both graphs are known, so arrays go through canonical feature order and the
            probe proves the pairing. Otherwise the two are of one framework, with the same names
            and shapes, and are taken to be the same model.
    """

    source: Structure
    target: Structure
    sites: Mapping[str, str]
    by_graph: bool

    def carry(self, arrays: Params) -> dict[str, Array]:
        """Return the ticket's ``arrays`` as the model has them; roles without a twin are left."""
        if self.by_graph:
            arrays = in_canonical_order(arrays, self.source)
        placed = {}
        for name, array in arrays.items():
            site, _, role = name.rpartition(".")
            twin = f"{self.sites[site]}.{role}"
            if twin in self.target.shapes:
                placed[twin] = array
        return in_native_order(placed, self.target) if self.by_graph else placed

    def differences(self, *, in_outputs: bool) -> str:
        """Return which attributes of paired sites differ; empty if none.

        Args:
            in_outputs: those that change outputs, or else those that change only training.
        """
        twins = {site.name: site for site in self.target.sites}
        found = []
        for site in self.source.sites:
            twin = twins[self.sites[site.name]]
            found += [
                f"{site.name}: {key} is {site.attrs[key]} in the ticket, {twin.attrs[key]} in "
                f"{twin.name}"
                for key in sorted(site.attrs.keys() & twin.attrs.keys())
                if site.attrs[key] != twin.attrs[key]
                and (key not in TRAINING_ATTRIBUTES) == in_outputs
            ]
        return "; ".join(found)


@contextmanager
def restoring(
    backend: Backend, model: Any, structure: Structure, *, always: bool = False
) -> Iterator[None]:
    """Give the model its weights and buffers back if the block fails, or ``always``."""
    before = backend.read(model, structure)
    try:
        yield
    except BaseException:
        backend.write(model, structure, before)
        raise
    if always:
        backend.write(model, structure, before)


def record_probe(
    backend: Backend, model: Any, structure: Structure, weights: Params
) -> Probe | None:
    """Return what another framework needs to prove equality; None where that cannot be had.

    Args:
        backend: drives ``model``.
        model: any weights; it gets them back.
        structure: of the model, traced.
        weights: the ticket's, for its own outputs.
    """
    if structure.why_not_portable():
        return None
    synthetic = in_native_order(synthetic_params(structure.sites), structure)
    outputs = []
    with restoring(backend, model, structure, always=True):
        for values in (synthetic, weights):
            backend.write(model, structure, values)
            outputs.append(backend.forward(model, structure, probe_inputs(structure)))
    return Probe(*outputs)


def pair(
    record: TicketRecord,
    backend: Backend,
    target: Structure,
    mapping: Mapping[str, str] | None = None,
) -> Pairing:
    """Return which site is which: by name within one framework, else by the graph of layers.

    Raises:
        MatchError: the ticket is for another architecture.
        AmbiguousMatchError: several pairings fit.
        NotPortableError: the graph that would pair the two is not known on one side.
    """
    source = record.structure
    known = not record.why_not_portable() and not target.why_not_portable()
    if record.provenance.get("framework") == backend.name and not mapping:
        try:
            return Pairing(source, target, match_by_name(source, target), known)
        except MatchError:
            # Renamed layers may still match by graph; other shapes cannot.
            if not known or sorted(source.shapes.values()) != sorted(target.shapes.values()):
                raise
    _check_portable(record, target)
    return Pairing(source, target, match_by_graph(source, target, mapping), by_graph=True)


def _check_portable(record: TicketRecord, target: Structure) -> None:
    reason = record.why_not_portable()
    if reason:
        hint = ". Make it again with example=, one input batch of the model"
        raise NotPortableError(
            "the ticket is for its own framework and its own names only: "
            f"{reason}{hint if record.structure.untraced else ''}"
        )
    reason = target.why_not_portable()
    if reason:
        hint = ". Give example=, one input batch of the model"
        raise NotPortableError(
            "the layers of this model are not known well enough to place the ticket: "
            f"{reason}{hint if target.untraced else ''}"
        )


def place(
    record: TicketRecord,
    backend: Backend,
    model: Any,
    pairing: Pairing,
    *,
    weights: Weights = "ticket",
    seed: int = 0,
) -> Masks:
    """Prove the pairing, write the weights, and return the masks as the model has them.

    The caller restores the model if this fails.

    Raises:
        MatchError: the ticket does not fit.
        InvalidValueError: ``weights`` is none of its three words.
    """
    if weights not in ("ticket", "keep", "reinit"):
        raise InvalidValueError(f"weights is {weights!r}; expected 'ticket', 'keep' or 'reinit'")
    structure = pairing.target
    if pairing.by_graph:
        with restoring(backend, model, structure, always=True):
            _prove(record, backend, model, pairing)
        if differences := pairing.differences(in_outputs=False):
            warnings.warn(
                f"paired layers compute the same outputs but would not train alike: {differences}",
                stacklevel=4,
            )
    if weights == "ticket":
        backend.write(model, structure, pairing.carry(record.weights()))
    elif weights == "reinit":
        backend.write(model, structure, backend.redraw(model, structure, seed))
    return Masks(pairing.carry(record.masks))


def _prove(record: TicketRecord, backend: Backend, model: Any, pairing: Pairing) -> None:
    """Run both probes on the model; the caller restores its weights."""
    assert record.probe is not None  # checked where the pairing was made
    synthetic = in_native_order(synthetic_params(record.structure.sites), record.structure)
    trials = (
        ("made-up weights", synthetic, record.probe.synthetic),
        ("the ticket's weights", record.weights(), record.probe.ticket),
    )
    tolerance = max(tolerance_for(record.structure), tolerance_for(pairing.target))
    for what, values, expected in trials:
        backend.write(model, pairing.target, pairing.carry(values))
        found = _outputs(record, backend, model, pairing)
        try:
            check_outputs(expected, found, what, tolerance)
        except ProbeMismatchError as error:
            hints = pairing.differences(in_outputs=True)
            said = f"{error}. What differs: {hints}" if hints else str(error)
            raise ProbeMismatchError(said) from None


def _outputs(
    record: TicketRecord, backend: Backend, model: Any, pairing: Pairing
) -> tuple[Array, ...]:
    try:
        return backend.forward(model, pairing.target, probe_inputs(record.structure))
    except LtcoreError:
        raise
    except Exception as error:
        shapes = [face.shape for face in record.structure.inputs or ()]
        raise ProbeMismatchError(
            f"the model does not take the inputs of the ticket's model, of canonical shapes "
            f"{shapes} (0 is the batch): {type(error).__name__}: {error}"
        ) from error
