"""Which site of a ticket is which site of a model.

Given pairs come first; then names, where both sides speak the same framework; then the graph of
layers: sites get the same colour only if their kind, shapes and whole neighbourhood agree
(Weisfeiler-Leman refinement). A tie that nothing breaks is an error, never a guess.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ltcore.errors import AmbiguousMatchError, MatchError
from ltcore.parameters import Site, Structure


def match_by_name(ticket: Structure, model: Structure) -> dict[str, str]:
    """Return ``{ticket site: model site}`` for structures whose names and shapes are the same.

    Raises:
        MatchError: lists missing, unexpected and mismatched parameters with both shapes.
    """
    missing = [name for name in ticket.shapes if name not in model.shapes]
    unexpected = [name for name in model.shapes if name not in ticket.shapes]
    mismatched = [
        f"{name}: ticket {shape}, model {model.shapes[name]}"
        for name, shape in ticket.shapes.items()
        if name in model.shapes and model.shapes[name] != shape
    ]
    if missing or unexpected or mismatched:
        raise MatchError(
            "the ticket is for another architecture: "
            f"missing from the model {missing}, unexpected in the model {unexpected}, "
            f"mismatched shapes {mismatched}"
        )
    return {site.name: site.name for site in ticket.sites}


def match_by_graph(
    ticket: Structure, model: Structure, mapping: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return ``{ticket site: model site}`` proved by the graph of layers.

    Args:
        ticket: sites with known predecessors.
        model: sites with known predecessors.
        mapping: pairs that are given; they also break ties for their neighbours.

    Raises:
        MatchError: the graphs differ, or a given pair does not exist or fit; lists both sides.
        AmbiguousMatchError: several pairings fit; lists the candidates.
    """
    given = dict(mapping or {})
    _check_given(ticket, model, given)
    ours = _by_colour(ticket.sites, {name: f"given {name}" for name in given})
    theirs = _by_colour(model.sites, {target: f"given {name}" for name, target in given.items()})
    _check_same(ticket, model, ours, theirs)
    ties = [(ours[colour], theirs[colour]) for colour in ours if len(ours[colour]) > 1]
    if ties:
        lines = "; ".join(f"{left} could each be any of {right}" for left, right in ties)
        first, candidates = ties[0][0][0], ties[0][1]
        raise AmbiguousMatchError(
            f"the layers' graph does not tell apart: {lines}. Say which is which, for example "
            f"mapping={{{first!r}: {candidates[0]!r}, ...}}"
        )
    return {names[0]: theirs[colour][0] for colour, names in ours.items()}


def _check_given(ticket: Structure, model: Structure, given: Mapping[str, str]) -> None:
    ours = {site.name: site for site in ticket.sites}
    theirs = {site.name: site for site in model.sites}
    for name, target in given.items():
        for wanted, known, whose in ((name, ours, "ticket"), (target, theirs, "model")):
            if wanted not in known:
                raise MatchError(
                    f"mapping[{name!r}] = {target!r}: the {whose} has no site {wanted!r}; "
                    f"it has {list(known)}"
                )
        if _signature(ours[name]) != _signature(theirs[target]):
            raise MatchError(
                f"mapping[{name!r}] = {target!r}: {_describe(ours[name])} in the ticket, "
                f"{_describe(theirs[target])} in the model"
            )
    if len(set(given.values())) < len(given):
        raise MatchError(f"mapping gives one site of the model to two of the ticket: {given}")


def _check_same(
    ticket: Structure,
    model: Structure,
    ours: Mapping[str, list[str]],
    theirs: Mapping[str, list[str]],
) -> None:
    """Raise unless both sides have the same colours; say it in shapes wherever shapes differ."""
    if {c: len(n) for c, n in ours.items()} == {c: len(n) for c, n in theirs.items()}:
        return
    missing, unexpected = _unpaired(ticket, model), _unpaired(model, ticket)
    if missing or unexpected:
        raise MatchError(
            "the ticket is for another architecture: "
            f"missing from the model {missing}, unexpected in the model {unexpected}"
        )
    raise MatchError(
        "the ticket's model has the same layers but wires them differently: "
        f"{_odd(ticket, ours, theirs)} in the ticket, {_odd(model, theirs, ours)} in the model"
    )


def _odd(
    side: Structure, ours: Mapping[str, list[str]], theirs: Mapping[str, list[str]]
) -> list[str]:
    odd = {n for c, names in ours.items() if len(theirs.get(c, ())) != len(names) for n in names}
    return [_describe(site) for site in side.sites if site.name in odd]


def _unpaired(side: Structure, other: Structure) -> list[str]:
    """Return the sites of ``side`` that are too many of their kind and shape."""
    spare: dict[object, int] = defaultdict(int)
    for site in other.sites:
        spare[_signature(site)] += 1
    result = []
    for site in side.sites:
        spare[_signature(site)] -= 1
        if spare[_signature(site)] < 0:
            result.append(_describe(site))
    return result


def _signature(site: Site) -> object:
    roles = [(r.name, r.shape) for r in site.roles if r.portable]
    return site.kind, tuple(sorted(roles))


def _describe(site: Site) -> str:
    shapes = ", ".join(f"{role.name} {role.shape}" for role in site.roles if role.portable)
    return f"{site.name} ({site.kind}: {shapes})"


def _by_colour(sites: Sequence[Site], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Return ``{colour: site names}``, refined until nothing more can be told apart."""
    succs: dict[str, list[str]] = {site.name: [] for site in sites}
    for site in sites:
        for pred in site.preds or ():
            succs[pred].append(site.name)
    colours = {site.name: _hash(given.get(site.name), _signature(site)) for site in sites}
    for _ in sites:
        refined = {
            site.name: _hash(
                colours[site.name],
                sorted(colours[name] for name in site.preds or ()),
                sorted(colours[name] for name in succs[site.name]),
            )
            for site in sites
        }
        done = len(set(refined.values())) == len(set(colours.values()))
        colours = refined
        if done:
            break
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, colour in colours.items():
        grouped[colour].append(name)
    return grouped


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
