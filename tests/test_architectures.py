"""Architectures as people write them: a ticket of one framework's build works in the other's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import ltcore as lt  # noqa: E402
from architectures import CASES  # noqa: E402
from carrying import (  # noqa: E402
    DIRECTIONS,
    compare_gradients,
    compare_masks,
    compare_outputs,
    enliven,
    sides,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class NotCarriedError(Exception):
    """The ticket has no probe, so it stays in its framework."""


MARKS = {
    # Outputs agree; in training PyTorch's two biases move as one of twice the speed.
    "lstm-classifier": pytest.mark.filterwarnings("ignore:paired layers.*biases is:UserWarning"),
}  # fmt: skip


@pytest.fixture(params=list(CASES))
def case(request):
    return the_case(request.param)


def the_case(name):
    if name.startswith("bert"):
        pytest.importorskip("transformers", reason="the BERT of Hugging Face")
    return CASES[name]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def test_a_ticket_works_in_the_other_framework(name, direction, tmp_path, record_exchange):
    case = the_case(name)
    ours, theirs = sides(direction)
    torch.manual_seed(0)
    keras.utils.set_random_seed(1)
    source, target = ours.build(case), theirs.build(case)
    example = case.batch(1)
    enliven(source, ours.packed(example), np.random.default_rng(2))
    hold = lt.prune(source, sparsity=0.8, scope="layer", example=ours.packed(example))
    ticket = lt.Ticket.from_model(source, example=ours.packed(example))
    if ticket.probe is None:
        raise NotCarriedError(ticket.structure.why_not_portable())
    ticket.save(tmp_path / "t")

    applied = lt.load(tmp_path / "t").apply(target, example=theirs.packed(example))

    batch = case.batch(8, seed=3)
    difference = compare_outputs(ours.outputs(source, batch), theirs.outputs(target, batch))
    record_exchange(name, direction, difference)
    pairs = ticket.match(target, example=theirs.packed(example))
    compare_masks(hold, applied, pairs)
    compare_gradients(hold, applied, pairs, direction, case)


def test_both_builds_have_the_parameters_that_the_literature_counts(case):
    theirs = [v.shape for v in case.keras().trainable_variables]
    ours = [p.shape for p in case.torch().parameters()]
    assert total(ours) == total(theirs) + case.only_torch
    assert case.parameters in (None, total(theirs))
    for shapes in (ours, theirs):
        assert case.kernels in (None, total(s for s in shapes if len(s) > 1))


def total(shapes):
    return sum(int(np.prod(shape)) for shape in shapes)
