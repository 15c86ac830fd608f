"""A ticket's weights into a model: paired, proved, written, or refused with nothing changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.errors import InvalidValueError, MatchError, NotPortableError, ProbeMismatchError
from ltcore.masks import Masks
from ltcore.matching import match_by_graph, match_by_name
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.probe import Probe, check_outputs, probe_inputs, synthetic_params, tolerance_for
from ltcore.ticketfile import TicketRecord

Weights: TypeAlias = Literal["ticket", "keep", "reinit"]
"""Which values a model gets: the ticket's, the ones it has, or fresh ones (a control)."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which site of a ticket is which site of a model.

    Attributes:
        source: the ticket's structure.
        target: the model's.
        sites: ``{ticket site: model site}``.
        by_name: the two are of one framework with the same names and shapes: feature orders are
            the same, and nothing needs a proof.
    """

    source: Structure
    target: Structure
    sites: Mapping[str, str]
    by_name: bool

    def carry(self, arrays: Params) -> dict[str, Array]:
        """Return the ticket's ``arrays`` as the model has them; roles without a twin are left."""
        if not self.by_name:
            arrays = in_canonical_order(arrays, self.source)
        placed = {}
        for name, array in arrays.items():
            site, _, role = name.rpartition(".")
            twin = f"{self.sites[site]}.{role}"
            if twin in self.target.shapes:
                placed[twin] = array
        return placed if self.by_name else in_native_order(placed, self.target)

    def differences(self) -> str:
        """Return which attributes of paired sites differ, as a sentence; empty if none."""
        twins = {site.name: site for site in self.target.sites}
        found = []
        for site in self.source.sites:
            twin = twins[self.sites[site.name]]
            found += [
                f"{site.name}: {key} is {site.attrs[key]} in the ticket, {twin.attrs[key]} in "
                f"{twin.name}"
                for key in sorted(site.attrs.keys() & twin.attrs.keys())
                if site.attrs[key] != twin.attrs[key]
            ]
        return "What differs: " + "; ".join(found) if found else ""


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
    before = backend.read(model, structure)
    outputs = []
    try:
        for values in (synthetic, weights):
            backend.write(model, structure, values)
            outputs.append(backend.forward(model, structure, probe_inputs(structure)))
    finally:
        backend.write(model, structure, before)
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
    if record.provenance.get("framework") == backend.name and not mapping:
        try:
            return Pairing(source, target, match_by_name(source, target), by_name=True)
        except MatchError:
            # Renamed layers may still match by graph; other shapes cannot.
            if source.why_not_portable() or target.why_not_portable():
                raise
            if sorted(source.shapes.values()) != sorted(target.shapes.values()):
                raise
    _check_portable(record, target)
    return Pairing(source, target, match_by_graph(source, target, mapping), by_name=False)


def _check_portable(record: TicketRecord, target: Structure) -> None:
    reason = record.why_not_portable()
    if reason:
        raise NotPortableError(
            f"the ticket is for its own framework and its own names only: {reason}. "
            "Make it again with example=, one input batch of the model"
        )
    reason = target.why_not_portable()
    if reason:
        raise NotPortableError(
            f"the layers of this model are not known well enough to place the ticket: {reason}. "
            "Give example=, one input batch of the model"
        )


def place(
    record: TicketRecord,
    backend: Backend,
    model: Any,
    *,
    example: Any = None,
    mapping: Mapping[str, str] | None = None,
    weights: Weights = "ticket",
    seed: int = 0,
) -> tuple[Structure, Masks]:
    """Write the ticket into ``model`` and return the model's structure and masks.

    Raises:
        MatchError: the ticket does not fit; the model is as it was.
        InvalidValueError: ``weights`` is none of its three words.
    """
    if weights not in ("ticket", "keep", "reinit"):
        raise InvalidValueError(f"weights is {weights!r}; expected 'ticket', 'keep' or 'reinit'")
    structure = backend.describe(model, example)
    pairing = pair(record, backend, structure, mapping)
    masks = Masks(pairing.carry(record.masks))
    before = backend.read(model, structure)
    try:
        if not pairing.by_name:
            _prove(record, backend, model, pairing)
            backend.write(model, structure, before)
        if weights == "ticket":
            backend.write(model, structure, pairing.carry(record.weights()))
        elif weights == "reinit":
            backend.write(model, structure, backend.redraw(model, structure, seed))
    except BaseException:
        backend.write(model, structure, before)
        raise
    return structure, masks


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
        found = backend.forward(model, pairing.target, probe_inputs(record.structure))
        try:
            check_outputs(expected, found, what, tolerance)
        except ProbeMismatchError as error:
            hints = pairing.differences()
            raise ProbeMismatchError(f"{error}. {hints}" if hints else str(error)) from None
