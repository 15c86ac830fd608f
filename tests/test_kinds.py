"""Every layer kind in both directions: equal outputs, equal masks, equal gradients."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import ltcore as lt  # noqa: E402
from carrying import (  # noqa: E402
    DIRECTIONS,
    compare_gradients,
    compare_masks,
    compare_outputs,
    enliven,
    sides,
)
from kinds import CASES  # noqa: E402
from ltcore.layouts import KINDS  # noqa: E402


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_carried_both_ways(name, direction, tmp_path, record_exchange):
    case = CASES[name]
    ours, theirs = sides(direction)
    torch.manual_seed(0)
    keras.utils.set_random_seed(1)
    source, target = ours.build(case), theirs.build(case)
    example = case.batch(1)
    enliven(source, ours.packed(example), np.random.default_rng(2))
    hold = lt.prune(source, sparsity=0.5, scope="layer", example=ours.packed(example))
    ticket = lt.Ticket.from_model(source, example=ours.packed(example))
    assert ticket.probe is not None, ticket.structure.why_not_portable()
    ticket.save(tmp_path / "t")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "paired layers.*biases is")  # one bias moves as two do
        applied = lt.load(tmp_path / "t").apply(target, example=theirs.packed(example))

    batch = case.batch(8, seed=3)
    difference = compare_outputs(ours.outputs(source, batch), theirs.outputs(target, batch))
    record_exchange(name, direction, difference)
    pairs = ticket.match(target, example=theirs.packed(example))
    compare_masks(hold, applied, pairs)
    compare_gradients(hold, applied, pairs, direction, case)


def test_every_portable_kind_is_among_the_cases():
    met = set()
    for case in CASES.values():
        example = sides(DIRECTIONS[0])[0].packed(case.batch(1))
        hold = lt.prune(case.torch(), sparsity=0.1, example=example)
        met |= {site.kind for site in hold.structure.sites}
        hold.release()
    assert met == {kind.name for kind in KINDS.values() if kind.portable}
