"""A ticket's weights into a model: paired, proved, written, or refused with nothing changed."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ltcore.backend import Backend
from ltcore.errors import InvalidValueError, MatchError, NotPortableError
from ltcore.masks import Masks
from ltcore.matching import ambiguous, match_by_graph, match_by_name
from ltcore.pairing import TRAINING_ATTRIBUTES, Pairing
from ltcore.parameters import Structure
from ltcore.proof import Prover
from ltcore.restoring import restoring
from ltcore.ticketfile import TicketRecord

Weights: TypeAlias = Literal["ticket", "keep", "reinit"]
"""Which values a model gets: the ticket's, the ones it has, or fresh ones (a control)."""

Head: TypeAlias = Literal["error", "reinit", "keep"]
"""What becomes of output layers: the ticket's, which must fit; fresh ones; the model's own."""


def check_words(weights: Weights, head: Head) -> None:
    """Raise unless the words for weights and output layers are known.

    Raises:
        InvalidValueError: says which are.
    """
    if weights not in ("ticket", "keep", "reinit"):
        raise InvalidValueError(f"weights is {weights!r}; expected 'ticket', 'keep' or 'reinit'")
    if head not in ("error", "reinit", "keep"):
        raise InvalidValueError(f"head is {head!r}; expected 'error', 'reinit' or 'keep'")


def pair(
    record: TicketRecord,
    backend: Backend,
    model: Any,
    target: Structure,
    *,
    mapping: Mapping[str, str] | None = None,
    head: Head = "error",
    probe: bool = True,
) -> Pairing:
    """Return which site is which: by name within one framework, else by the graph of layers.

    Where both graphs are known, the probe has proved the pairing when this returns. The model
    ends as it was.

    Args:
        record: the ticket.
        backend: drives ``model``.
        model: the model.
        target: its structure.
        mapping: ``{ticket site: model site}``, all or some.
        head: what becomes of output layers.
        probe: False takes the pairing unproved.

    Raises:
        MatchError: the ticket is for another architecture.
        AmbiguousMatchError: several pairings fit.
        NotPortableError: the graph that would pair the two is not known on one side.
        ProbeMismatchError: the two do not compute the same.
    """
    heads = frozenset() if head == "error" else _heads(record, target, head)
    known = not _obstacle(record, probe) and not target.why_not_portable()
    with restoring(backend, model, target, always=True):
        # A ticket's probe needs no graph of the model where names tell which array is which.
        prover = Prover(record, backend, model) if probe and not _obstacle(record, probe) else None
        pairing = _by_name(record, backend, target, mapping, heads, known)
        if pairing is None:
            _check_portable(record, target, probe)
            pairing = _by_graph(record, target, mapping, heads, prover)
        if prover:
            prover.prove(pairing)
    return pairing


def _heads(record: TicketRecord, target: Structure, head: Head) -> frozenset[str]:
    """Return the ticket's output layers.

    Raises:
        MatchError: it is not known which they are, or there are none.
    """
    for structure, whose in ((record.structure, "ticket"), (target, "model")):
        if not structure.heads:
            reason = structure.untraced or "no dense or convolutional layer is its last"
            raise MatchError(
                f"head={head!r} needs to know the output layer of the {whose}: {reason}. Give "
                "example=, one input batch, here and where the ticket is made"
            )
    return record.structure.heads


def _by_name(
    record: TicketRecord,
    backend: Backend,
    target: Structure,
    mapping: Mapping[str, str] | None,
    heads: frozenset[str],
    known: bool,
) -> Pairing | None:
    """Return the pairing of equal names in one framework; None where the graph has to tell."""
    if record.provenance.get("framework") != backend.name or mapping:
        return None
    source = record.structure
    try:
        sites = match_by_name(source, target, free_heads=bool(heads))
    except MatchError:
        if not known:
            raise
        return None  # renamed layers may still match by graph
    return Pairing(source, target, sites, known, heads)


def _by_graph(
    record: TicketRecord,
    target: Structure,
    mapping: Mapping[str, str] | None,
    heads: frozenset[str],
    prover: Prover | None,
) -> Pairing:
    given = dict(mapping or {})
    while True:
        match = match_by_graph(record.structure, target, given, free_heads=bool(heads))
        pairing = Pairing(record.structure, target, match.pairs, True, heads)
        if not match.ties:
            return pairing
        if prover is None:
            raise ambiguous(match, "nothing is tried with probe=False")
        given |= prover.settle(match, pairing)


def _obstacle(record: TicketRecord, probe: bool) -> str:
    return record.why_not_portable() if probe else record.structure.why_not_portable()


def _check_portable(record: TicketRecord, target: Structure, probe: bool) -> None:
    reason = _obstacle(record, probe)
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
    head: Head = "error",
    seed: int = 0,
) -> Masks:
    """Write the weights, and return the masks as the model has them.

    The caller restores the model if this fails.

    Raises:
        MatchError: the ticket's masks do not fit.
        CapabilityError: a layer to be drawn anew does not say how it is initialized; names it.
    """
    structure = pairing.target
    masks = pairing.masks(record.masks)
    if differences := pairing.differences(TRAINING_ATTRIBUTES):
        warnings.warn(
            f"paired layers compute the same outputs but would not train alike: {differences}",
            stacklevel=3,
        )
    if weights == "ticket":
        backend.write(model, structure, pairing.params(record.weights()))
    if fresh := _fresh(pairing, weights, head):
        backend.write(model, structure, backend.redraw(model, structure, seed, fresh))
    return masks


def _fresh(pairing: Pairing, weights: Weights, head: Head) -> list[str]:
    """Return the parameters that are drawn anew."""
    outputs = pairing.head_params()
    body = [name for name in pairing.target.shapes if name not in outputs]
    return (body if weights == "reinit" else []) + (
        outputs if head == "reinit" or (weights == "reinit" and head == "error") else []
    )
