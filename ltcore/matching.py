"""Which site of a ticket is which site of a model.

Given pairs come first; then names, where both sides speak the same framework; then the graph of
layers: sites get the same colour only if their kind, shapes and whole neighbourhood agree
(Weisfeiler-Leman refinement). What the graph does not tell apart is a tie: never settled by a
guess, but by what the sites are known to be (the q, k and v of attention) or by trial
(`ltcore.proof`).
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltcore.errors import AmbiguousMatchError, MatchError
from ltcore.layouts import KINDS
from ltcore.parameters import Site, Structure

MAX_TIE = 6
"""Sites that a trial can tell apart: 720 ways to pair them."""

MAX_TOLD = 8
"""Sites that an error names of each side."""

MAX_TIES = 64
"""Ties of one model that a ticket records trials for."""


@dataclass(frozen=True, slots=True)
class Match:
    """What the graphs of two models say.

    Attributes:
        pairs: ``{ticket site: model site}`` where there is one way only.
        ties: ``(ticket sites, model sites)`` that could be paired in several ways.
    """

    pairs: Mapping[str, str]
    ties: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def match_by_name(
    ticket: Structure, model: Structure, *, free_heads: bool = False
) -> dict[str, str]:
    """Return ``{ticket site: model site}`` for structures whose names and shapes are the same.

    Args:
        ticket: the ticket's structure.
        model: the model's.
        free_heads: let the output layers differ in their number of outputs.

    Raises:
        MatchError: lists missing, unexpected and mismatched parameters with both shapes.
    """
    ours, theirs = _shapes(ticket, free_heads), _shapes(model, free_heads)
    missing = [name for name in ours if name not in theirs]
    unexpected = [name for name in theirs if name not in ours]
    mismatched = [
        f"{name}: ticket {ticket.shapes[name]}, model {model.shapes[name]}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if missing or unexpected or mismatched:
        raise MatchError(
            "the ticket is for another architecture: "
            f"missing from the model {missing}, unexpected in the model {unexpected}, "
            f"mismatched shapes {mismatched}"
        )
    return {site.name: site.name for site in ticket.sites}


def match_by_graph(
    ticket: Structure,
    model: Structure,
    given: Mapping[str, str] | None = None,
    *,
    free_heads: bool = False,
) -> Match:
    """Return which sites the graphs of two models pair, and which they leave tied.

    Args:
        ticket: sites with known predecessors.
        model: sites with known predecessors.
        given: pairs that are known; they also break ties for their neighbours.
        free_heads: let the output layers differ in their number of outputs.

    Raises:
        MatchError: the graphs differ, or a given pair does not exist or fit; lists both sides.
    """
    given = dict(given or {})
    ours, theirs = _Side(ticket, free_heads), _Side(model, free_heads)
    _check_given(ours, theirs, given)
    left = ours.classes({name: f"given {name}" for name in given})
    right = theirs.classes({target: f"given {name}" for name, target in given.items()})
    _check_same(ours, theirs, left, right)
    pairs, ties = {}, []
    for colour, names in left.items():
        known = _paired_by_part(names, right[colour], ours, theirs)
        if known:
            pairs.update(known)
        else:
            ties.append((tuple(names), tuple(right[colour])))
    return Match(pairs, tuple(ties))


def tie_classes(structure: Structure) -> tuple[tuple[str, ...], ...]:
    """Return the groups of sites that the graph of a model does not tell apart."""
    found = _Side(structure, free_heads=False).classes({}).values()
    return tuple(tuple(names) for names in found if 1 < len(names) <= MAX_TIE)[:MAX_TIES]


def ambiguous(match: Match, why: str) -> AmbiguousMatchError:
    """Return the error that lists the candidates of every tie."""
    lines = "; ".join(
        f"{list(left)} could each be any of {list(right)}" for left, right in match.ties
    )
    first, candidates = match.ties[0][0][0], match.ties[0][1]
    return AmbiguousMatchError(
        f"the layers' graph does not tell apart: {lines}, and {why}. Say which is which, for "
        f"example mapping={{{first!r}: {candidates[0]!r}, ...}}"
    )


class _Side:
    """One of the two models: its sites, without those of constants, and how they are wired."""

    def __init__(self, structure: Structure, free_heads: bool) -> None:
        self.sites = {site.name: site for site in structure.sites if site.matched}
        self.preds = _preds(structure)
        self.heads = structure.heads
        heads = structure.heads if free_heads else set()
        self.signatures = {n: signature(site, n in heads) for n, site in self.sites.items()}

    def classes(self, given: Mapping[str, str]) -> dict[str, list[str]]:
        """Return ``{colour: site names}``, refined until nothing more can be told apart."""
        succs: dict[str, list[str]] = {name: [] for name in self.sites}
        for name, preds in self.preds.items():
            for pred in preds:
                succs[pred].append(name)
        colours = {n: _hash(given.get(n), self.signatures[n]) for n in self.sites}
        for _ in self.sites:
            refined = {
                name: _hash(
                    colours[name],
                    sorted(colours[pred] for pred in self.preds[name]),
                    sorted(colours[succ] for succ in succs[name]),
                )
                for name in self.sites
            }
            done = len(set(refined.values())) == len(set(colours.values()))
            colours = refined
            if done:
                break
        grouped: dict[str, list[str]] = defaultdict(list)
        for name, colour in colours.items():
            grouped[colour].append(name)
        return grouped

    def described(self, name: str) -> str:
        """Return a site with its kind and shapes."""
        site = self.sites[name]
        shapes = ", ".join(f"{role.name} {role.shape}" for role in site.roles if role.portable)
        return f"{name} ({site.kind}: {shapes})"


def signature(site: Site, free_head: bool = False) -> object:
    """Return what two sites must share to be paired: kind, direction, shapes of their roles.

    The second bias of a recurrent layer may be missing: it then counts as zero.
    """
    optional = ("b_hh",) if site.kind in ("rnn", "lstm") else ()
    outs = KINDS[site.kind].outs if free_head else {}
    roles = [
        (role.name, tuple(-1 if outs.get(role.name) == i else n for i, n in enumerate(role.shape)))
        for role in site.roles
        if role.portable and role.name not in optional
    ]
    return site.kind, site.attrs.get("direction"), tuple(sorted(roles))


def _preds(structure: Structure) -> dict[str, list[str]]:
    """Return ``{site: upstream sites}``, looking through sites of constants."""
    sites = {site.name: site for site in structure.sites}

    def upstream(site: Site, seen: frozenset[str]) -> set[str]:
        found: set[str] = set()
        for pred in set(site.preds or ()) - seen:
            there = sites[pred]
            found |= {pred} if there.matched else upstream(there, seen | {pred})
        return found

    return {n: sorted(upstream(s, frozenset())) for n, s in sites.items() if s.matched}


def _paired_by_part(
    ours: Sequence[str], theirs: Sequence[str], left: _Side, right: _Side
) -> dict[str, str]:
    """Return the pairs of a class with one member, or of projections that say which they are."""
    if len(ours) == 1:
        return {ours[0]: theirs[0]}
    mine = {left.sites[name].part: name for name in ours}
    yours = {right.sites[name].part: name for name in theirs}
    if "" in mine or len(mine) < len(ours) or mine.keys() != yours.keys():
        return {}
    return {name: yours[part] for part, name in mine.items()}


def _shapes(structure: Structure, free_heads: bool) -> dict[str, object]:
    """Return ``{parameter: shape}``, the number of outputs of heads left open."""
    heads = structure.heads if free_heads else set()
    result: dict[str, object] = {}
    for name, site, role in structure.items():
        axis = KINDS[site.kind].outs.get(role.name) if site.name in heads else None
        result[name] = tuple(-1 if i == axis else size for i, size in enumerate(role.shape))
    return result


def _check_given(ours: _Side, theirs: _Side, given: Mapping[str, str]) -> None:
    for name, target in given.items():
        for wanted, known, whose in ((name, ours, "ticket"), (target, theirs, "model")):
            if wanted not in known.sites:
                raise MatchError(
                    f"mapping[{name!r}] = {target!r}: the {whose} has no site {wanted!r}; "
                    f"it has {list(known.sites)}"
                )
        if ours.signatures[name] != theirs.signatures[target]:
            raise MatchError(
                f"mapping[{name!r}] = {target!r}: {ours.described(name)} in the ticket, "
                f"{theirs.described(target)} in the model"
            )
    if len(set(given.values())) < len(given):
        raise MatchError(f"mapping gives one site of the model to two of the ticket: {given}")


def _check_same(
    ours: _Side, theirs: _Side, left: Mapping[str, list[str]], right: Mapping[str, list[str]]
) -> None:
    """Raise unless both sides have the same colours; say it in shapes wherever shapes differ."""
    if {c: len(n) for c, n in left.items()} == {c: len(n) for c, n in right.items()}:
        return
    missing, unexpected = _unpaired(ours, theirs), _unpaired(theirs, ours)
    if missing or unexpected:
        only_heads = set(missing) <= ours.heads and set(unexpected) <= theirs.heads
        raise MatchError(
            "the ticket is for another architecture: "
            f"missing from the model {_told(ours, missing)}, unexpected in the model "
            f"{_told(theirs, unexpected)}"
            + (". head='reinit' or 'keep' leaves output layers out" if only_heads else "")
        )
    raise MatchError(
        "the ticket's model has the same layers but wires them differently: "
        f"{_odd(ours, left, right)} in the ticket, {_odd(theirs, right, left)} in the model"
    )


def _odd(side: _Side, mine: Mapping[str, list[str]], yours: Mapping[str, list[str]]) -> list[str]:
    odd = {n for c, names in mine.items() if len(yours.get(c, ())) != len(names) for n in names}
    return [side.described(name) for name in side.sites if name in odd]


def _unpaired(side: _Side, other: _Side) -> list[str]:
    """Return the names of the sites of ``side`` that are too many of their kind and shape."""
    spare: dict[object, int] = defaultdict(int)
    for found in other.signatures.values():
        spare[found] += 1
    result = []
    for name, wanted in side.signatures.items():
        spare[wanted] -= 1
        if spare[wanted] < 0:
            result.append(name)
    return result


def _told(side: _Side, names: Sequence[str]) -> list[str]:
    """Return sites with their shapes; of many, the first."""
    told = [side.described(name) for name in names[:MAX_TOLD]]
    return told + ([f"and {len(names) - MAX_TOLD} more"] if len(names) > MAX_TOLD else [])


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
