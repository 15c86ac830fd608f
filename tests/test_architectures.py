"""Architectures as people write them: a ticket of one framework's build works in the other's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from architectures import CASES  # noqa: E402
from carrying import DIRECTIONS, carry  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(params=list(CASES))
def case(request):
    return the_case(request.param)


def the_case(name):
    if name.startswith("bert"):
        pytest.importorskip("transformers", reason="the BERT of Hugging Face")
    return CASES[name]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_ticket_works_in_the_other_framework(name, direction, tmp_path, record_exchange):
    difference = carry(the_case(name), direction, 0.8, tmp_path / "t")
    record_exchange(name, direction, difference)


def test_both_builds_have_the_parameters_that_the_literature_counts(case):
    theirs = [v.shape for v in case.keras().trainable_variables]
    ours = [p.shape for p in case.torch().parameters()]
    assert total(ours) == total(theirs) + case.only_torch
    assert case.parameters in (None, total(theirs))
    for shapes in (ours, theirs):
        assert case.kernels in (None, total(s for s in shapes if len(s) > 1))


def total(shapes):
    return sum(int(np.prod(shape)) for shape in shapes)
