"""A ticket's weights into a model: paired, proved, written, or refused with nothing changed."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.errors import InvalidValueError, MatchError, NotPortableError, ProbeMismatchError
from ltcore.masks import Masks
from ltcore.matching import match_by_graph, match_by_name
from ltcore.parameters import Structure
from ltcore.probe import Probe, check_outputs, probe_inputs, synthetic_params
from ltcore.ticketfile import TicketRecord

Weights: TypeAlias = Literal["ticket", "keep", "reinit"]
"""Which values a model gets: the ticket's, the ones it has, or fresh ones (a control)."""


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
    before = backend.read(model, structure)
    try:
        backend.write(model, structure, synthetic_params(structure.sites))
        synthetic = backend.forward(model, structure, probe_inputs(structure))
        backend.write(model, structure, weights)
        ticket = backend.forward(model, structure, probe_inputs(structure))
    finally:
        backend.write(model, structure, before)
    return Probe(synthetic, ticket)


def pair(
    record: TicketRecord, backend: Backend, model: Structure, mapping: Mapping[str, str] | None
) -> tuple[dict[str, str], bool]:
    """Return ``{ticket site: model site}`` and whether the probe must prove it.

    Within one framework, equal names and shapes are enough.

    Raises:
        MatchError: the ticket is for another architecture.
        AmbiguousMatchError: several pairings fit.
        NotPortableError: the graph that would pair the two is not known on one side.
    """
    native = record.provenance.get("framework") == backend.name
    if native and not mapping:
        try:
            return match_by_name(record.structure, model), False
        except MatchError:
            if record.structure.why_not_portable() or model.why_not_portable():
                raise
            if sorted(record.structure.shapes.values()) != sorted(model.shapes.values()):
                raise
    _check_portable(record, model)
    return match_by_graph(record.structure, model, mapping), True


def _check_portable(record: TicketRecord, model: Structure) -> None:
    reason = record.structure.why_not_portable()
    if reason or record.probe is None:
        raise NotPortableError(
            f"the ticket is for its own framework and its own names only: {reason or 'no probe'}. "
            "Make it again with example=, one input batch of the model"
        )
    reason = model.why_not_portable()
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
    sites, prove = pair(record, backend, structure, mapping)
    before = backend.read(model, structure)
    try:
        if prove and record.probe:
            _prove(record, record.probe, backend, model, structure, sites)
        masks = Masks(_renamed(record.masks, sites, structure))
        if weights == "ticket":
            backend.write(model, structure, _renamed(record.weights(), sites, structure))
        elif weights == "reinit":
            backend.write(model, structure, backend.redraw(model, structure, seed))
    except BaseException:
        backend.write(model, structure, before)
        raise
    return structure, masks


def _prove(
    record: TicketRecord,
    probe: Probe,
    backend: Backend,
    model: Any,
    structure: Structure,
    sites: Mapping[str, str],
) -> None:
    """Run both probes; the caller restores the weights."""
    trials = (
        ("made-up weights", synthetic_params(record.structure.sites), probe.synthetic),
        ("the ticket's weights", record.weights(), probe.ticket),
    )
    before = backend.read(model, structure)
    for what, values, expected in trials:
        backend.write(model, structure, _renamed(values, sites, structure))
        found = backend.forward(model, structure, probe_inputs(record.structure))
        try:
            check_outputs(expected, found, what)
        except ProbeMismatchError as error:
            hints = _attribute_differences(record.structure, structure, sites)
            raise ProbeMismatchError(f"{error}. {hints}" if hints else str(error)) from None
    backend.write(model, structure, before)


def _renamed(
    arrays: Mapping[str, Array], sites: Mapping[str, str], model: Structure
) -> dict[str, Array]:
    """Return ``arrays`` under the model's names; roles that the model has no twin of are left."""
    renamed = {}
    for name, array in arrays.items():
        site, _, role = name.rpartition(".")
        target = f"{sites[site]}.{role}"
        if target in model.shapes:
            renamed[target] = array
    return renamed


def _attribute_differences(ticket: Structure, model: Structure, sites: Mapping[str, str]) -> str:
    theirs = {site.name: site for site in model.sites}
    found = []
    for site in ticket.sites:
        twin = theirs[sites[site.name]]
        found += [
            f"{site.name}: {key} is {site.attrs[key]} in the ticket, {twin.attrs[key]} in "
            f"{twin.name}"
            for key in sorted(site.attrs.keys() & twin.attrs.keys())
            if site.attrs[key] != twin.attrs[key]
        ]
    return "What differs: " + "; ".join(found) if found else ""
