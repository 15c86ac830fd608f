"""Proof that a model computes what a ticket's did, and trials where the graph is mute."""

import itertools
from collections.abc import Sequence
from typing import Any

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.errors import LtcoreError, ProbeMismatchError, gist
from ltcore.matching import MAX_TIE, Match, ambiguous, tie_classes
from ltcore.pairing import DECISIVE_ATTRIBUTES, Pairing
from ltcore.parameters import Interface, Structure, in_native_order
from ltcore.probe import (
    Probe,
    TieProbe,
    compare,
    probe_inputs,
    synthetic_params,
    tolerance_for,
)
from ltcore.restoring import restoring
from ltcore.ticketfile import TicketRecord


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
    inputs = probe_inputs(structure)
    classes = tie_classes(structure)

    def outputs(values: Params) -> tuple[Array, ...]:
        backend.write(model, structure, values)
        return backend.forward(model, structure, inputs)

    def made_up(equal: Sequence[Sequence[str]] = ()) -> Params:
        return in_native_order(synthetic_params(structure.sites, equal), structure)

    with restoring(backend, model, structure, always=True):
        synthetic, ticket = outputs(made_up()), outputs(weights)
        again = outputs(weights)
        if said := compare(ticket, again, tolerance_for(structure)):
            raise ProbeMismatchError(
                "two runs on the same input differ, so something random is left in inference mode, "
                f"such as a dropout without training=: {said}"
            )
        ties = tuple(TieProbe(one, outputs(made_up(_others(one, classes)))) for one in classes)
    return Probe(synthetic, ticket, ties)


def _others(one: Sequence[str], classes: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [other for other in classes if other != tuple(one)]


class Prover:
    """Runs a ticket's probe on a model, whose weights the caller restores."""

    def __init__(self, record: TicketRecord, backend: Backend, model: Any) -> None:
        assert record.probe is not None  # checked where the pairing is made
        self._record, self._probe = record, record.probe
        self._backend, self._model = backend, model

    def prove(self, pairing: Pairing) -> None:
        """Raise unless the model gives the recorded outputs.

        Raises:
            ProbeMismatchError: says how far they are apart, and which attributes differ.
        """
        synthetic = self._made_up()
        trials = (
            ("made-up weights", self._in_source_order(synthetic), self._probe.synthetic),
            ("the ticket's weights", self._record.weights(), self._probe.ticket),
        )
        for what, values, expected in trials:
            gap = self._gap(pairing, values, expected)
            if gap:
                hints = pairing.differences()
                raise ProbeMismatchError(
                    f"with {what}, {gap}: the models do not compute the same function. "
                    "Compare strides and padding, epsilons, activations, pooling, and the order "
                    "of layers; the model was left as it was"
                    + (f". What differs: {hints}" if hints else "")
                )
        if unseen := pairing.differences(DECISIVE_ATTRIBUTES):
            raise ProbeMismatchError(
                "outputs agree as far as the probe sees, but layers differ in what they compute: "
                f"{unseen}. Set them alike; the model was left as it was"
            )

    def settle(self, match: Match, pairing: Pairing) -> dict[str, str]:
        """Return the pairs of the first tie: the one way that gives the recorded outputs.

        Args:
            match: what the graphs leave open.
            pairing: its structures; the pairs are tried.

        Raises:
            AmbiguousMatchError: no way fits, or several, or the ticket has no trial for it.
        """
        ours, theirs = match.ties[0]
        trial = next((one for one in self._probe.ties if set(ours) <= set(one.sites)), None)
        if trial is None:
            raise ambiguous(
                match, f"the ticket has no trial that does (up to {MAX_TIE} layers are tried)"
            )
        equal = _others(trial.sites, [one.sites for one in self._probe.ties])
        values = self._in_source_order(self._made_up(equal))
        # The other ties are equal inside for this trial, so any way to pair them will do.
        rest = {a: b for left, right in match.ties[1:] for a, b in zip(left, right, strict=True)}
        fits = []
        for order in itertools.permutations(theirs):
            tried = dict(zip(ours, order, strict=True))
            sites = {**match.pairs, **rest, **tried}
            trying = Pairing(pairing.source, pairing.target, sites, True, pairing.heads)
            if not self._gap(trying, values, trial.outputs):
                fits.append(tried)
        if len(fits) != 1:
            why = "all ways compute the same" if fits else "no way computes what it should"
            raise ambiguous(match, f"by trial {why}")
        return fits[0]

    def _made_up(self, equal: Sequence[Sequence[str]] = ()) -> Params:
        return synthetic_params(self._record.structure.sites, equal, self._probe.rule)

    def _in_source_order(self, values: Params) -> dict[str, Array]:
        return in_native_order(values, self._record.structure)

    def _gap(self, pairing: Pairing, values: Params, expected: Sequence[Array]) -> str:
        tolerance = max(tolerance_for(self._record.structure), tolerance_for(pairing.target))
        self._backend.write(self._model, pairing.target, pairing.params(values, with_heads=True))
        found = self._outputs(pairing.target if pairing.canonical else pairing.source)
        return compare(expected, found, tolerance, free_heads=bool(pairing.heads))

    def _outputs(self, target: Structure) -> tuple[Array, ...]:
        inputs = [
            _fitted(array, face)
            for array, face in itertools.zip_longest(
                probe_inputs(self._record.structure, self._probe.rule), target.inputs or ()
            )
            if array is not None
        ]
        try:
            return self._backend.forward(self._model, target, inputs)
        except LtcoreError:
            raise
        except Exception as error:
            shapes = [face.shape for face in self._record.structure.inputs or ()]
            here = [face.shape for face in target.inputs or ()]
            if shapes != here and sorted(shapes) == sorted(here):
                raise ProbeMismatchError(
                    f"the model takes its inputs in another order: {shapes} in the ticket, {here} "
                    "in the model (0 is the batch)"
                ) from error
            raise ProbeMismatchError(
                f"the model does not take the inputs of the ticket's model, of canonical shapes "
                f"{shapes} (0 is the batch): {gist(error)}"
            ) from error


def _fitted(array: Array, face: Interface | None) -> Array:
    """Return an input in the model's own shape, where only axes of size 1 are more or fewer.

    Grey images come with or without their channel.
    """
    if face is None or _wide(array.shape[1:]) != _wide(face.shape[1:]):
        return array
    return array.reshape(len(array), *face.shape[1:])


def _wide(sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if size != 1]
