"""Every layer kind in both directions: equal outputs, equal masks, equal gradients."""

import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import ltcore as lt  # noqa: E402
from carrying import DIRECTIONS, carry, sides  # noqa: E402
from kinds import CASES  # noqa: E402
from ltcore.layouts import KINDS  # noqa: E402


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_carried_both_ways(name, direction, tmp_path, record_exchange):
    difference = carry(CASES[name], direction, 0.5, tmp_path / "t")
    record_exchange(name, direction, difference)


def test_every_portable_kind_is_among_the_cases():
    met = set()
    for case in CASES.values():
        example = sides(DIRECTIONS[0])[0].packed(case.batch(1))
        hold = lt.prune(case.torch(), sparsity=0.1, example=example)
        met |= {site.kind for site in hold.structure.sites}
        hold.release()
    assert met == {kind.name for kind in KINDS.values() if kind.portable}
