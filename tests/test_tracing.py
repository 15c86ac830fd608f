"""The books of a traced run: what axes are made of, against brute force over positions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltcore.axes import UNKNOWN, Atom, is_unknown, letter, named, reshaped, tidy, unknown
from ltcore.layouts import SEAM, UNKNOWN_GROUP, canonical_index
from ltcore.tracing import Trace

IMAGE = named(("N", "C", "S0", "S1"), (2, 5, 4, 3))


def positions(labels, shape, whole):
    """Return for every element which position along each whole axis it came from."""
    found = {}
    for axis, atoms in enumerate(labels):
        rest = shape[axis]
        index = np.arange(shape[axis])
        for atom in atoms:
            rest //= atom.size
            part = index // rest % atom.size * atom.stride
            view = part.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            found[atom.name] = found.get(atom.name, 0) + np.broadcast_to(view, shape)
    return {name: found.get(name, np.zeros(shape, int)) for name in whole}


def factorizations(total, depth=4):
    if depth == 0 or total == 1:
        yield (total,)
        return
    for first in range(1, total + 1):
        if total % first == 0:
            for rest in factorizations(total // first, depth - 1):
                yield (first, *rest)


@st.composite
def reshapes(draw):
    """Chains of reshapes and transpositions of a tensor with named axes."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    steps = []
    current = tuple(shape)
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(current)))))
            steps.append(("permute", order))
            current = tuple(current[i] for i in order)
        else:
            options = list(itertools.islice(factorizations(math.prod(current)), 200))
            current = draw(st.sampled_from(options))
            steps.append(("reshape", current))
    return tuple(shape), steps


@given(reshapes())
def test_labels_say_where_every_element_came_from_or_nothing(case):
    shape, steps = case
    names = ["ABDE"[i] for i in range(len(shape))]
    labels, sizes = named(names, shape), shape
    truth = dict(zip(names, np.indices(shape), strict=True))
    for step, argument in steps:
        if step == "permute":
            labels = tuple(labels[i] for i in argument)
            truth = {name: array.transpose(argument) for name, array in truth.items()}
            sizes = tuple(sizes[i] for i in argument)
        else:
            labels = reshaped(labels, sizes, argument)
            truth = {name: array.reshape(argument) for name, array in truth.items()}
            sizes = argument
        assert len(labels) == len(sizes)
        if any(map(is_unknown, labels)):
            return
        for name, array in positions(labels, sizes, names).items():
            assert np.array_equal(array, truth[name]), name


@given(reshapes())
def test_what_is_split_and_joined_again_is_what_it_was(case):
    shape, steps = case
    labels = named(["ABDE"[i] for i in range(len(shape))], shape)
    reshape_only = [argument for step, argument in steps if step == "reshape"]
    there, sizes = labels, shape
    for argument in reshape_only:
        there, sizes = reshaped(there, sizes, argument), argument
    back = reshaped(there, sizes, shape)
    if not any(map(is_unknown, there)):
        assert [tidy(axis) for axis in back] == [tidy(axis) for axis in labels]


def test_a_flatten_mixes_channels_and_space():
    trace = Trace()
    flat = reshaped(IMAGE, (2, 5, 4, 3), (2, 60))
    assert trace.group_of(flat[1]) == (("C", 5), ("S0", 4), ("S1", 3))
    tokens = reshaped(IMAGE, (2, 5, 4, 3), (2, 5, 12))
    assert trace.group_of(tokens[2]) is None
    assert trace.group_of(UNKNOWN) == UNKNOWN_GROUP
    assert [letter(axis) for axis in tokens] == ["N", "C", "F"]


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=3), min_size=1, max_size=3))
def test_both_orders_of_concatenated_flattens_are_one_canonical_order(images):
    """A vector made by either framework from the same images is the same once canonical."""
    canonical = []
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(sizes) for sizes in images]  # channels, then space
    for last in (False, True):
        trace, axes, parts = Trace(), [], []
        for array in values:
            names = ["C", *(f"S{i}" for i in range(array.ndim - 1))]
            order = [*range(1, array.ndim), 0] if last else range(array.ndim)
            turned = array.transpose(order)
            labels = named([names[i] for i in order], turned.shape)
            axes += reshaped(labels, turned.shape, (turned.size,))
            parts.append(turned.reshape(-1))
        group = trace.group_of(trace.concatenated(axes))
        vector = np.concatenate(parts)
        canonical.append(vector if group is None else vector[canonical_index(group)])
    assert np.array_equal(*canonical)


def heads(trace, site):
    """Return the labels (N, T, F) of a projection as heads: (N, H, T, D)."""
    labels = (*named(("N", "T"), (2, 7)), trace.features(site, 12))
    split = reshaped(labels, (2, 7, 12), (2, 7, 3, 4))
    return tuple(split[i] for i in (0, 2, 1, 3))


def test_attention_heads_come_out_as_the_values_features():
    trace = Trace()
    out = trace.attention(heads(trace, "q"), heads(trace, "k"), heads(trace, "v"))
    merged = reshaped(tuple(out[i] for i in (0, 2, 1, 3)), (2, 7, 3, 4), (2, 7, 12))
    assert merged[2] == (Atom("F:v", 1, 12),)
    through_batch = reshaped(heads(trace, "v"), (2, 3, 7, 4), (6, 7, 4))
    assert reshaped(through_batch, (6, 7, 4), (2, 3, 7, 4)) == heads(trace, "v")


def test_an_image_gives_a_dense_layer_the_order_of_its_outputs():
    trace = Trace()
    for site, shape, channels, group in (
        ("first", (2, 5, 4, 3), 1, (("C", 5), ("S0", 4), ("S1", 3))),
        ("last", (2, 4, 3, 5), -1, (("S0", 4), ("S1", 3), ("C", 5))),
    ):
        labels = (*named("N", (2,)), trace.features(site, 60))
        trace.visit(f"norm of {site}", [], labels[1])
        image = trace.as_image(reshaped(labels, (2, 60), shape), channels)
        assert sorted(map(letter, image)) == ["C", "N", "S0", "S1"]
        assert trace.out_group(site) == group
        assert trace.group_of(labels[1]) == group, "what is between follows"


def test_one_channel_or_one_pixel_needs_no_order():
    trace = Trace()
    labels = (*named("N", (2,)), trace.features("dense", 12))
    trace.as_image(reshaped(labels, (2, 12), (2, 1, 4, 3)), 1)
    assert trace.out_group("dense") is None
    labels = (*named("N", (2,)), trace.features("other", 12))
    trace.as_image(reshaped(labels, (2, 12), (2, 12, 1, 1)), 1)
    assert trace.out_group("other") is None


def test_pieces_along_one_axis_alone_are_no_image():
    trace = Trace()
    labels = reshaped((*named("N", (2,)), trace.features("dense", 12)), (2, 12), (2, 4, 3))
    steps = (labels[0], *named("T", (5,)), labels[2])  # the other axis was summed over
    assert trace.as_image(steps, -1) == steps
    trace.as_image(labels, -1)
    assert trace.out_group("dense") == UNKNOWN_GROUP, "its order is shared by now"


def test_two_orders_for_one_layer_are_no_order():
    trace = Trace()
    labels = (*named("N", (2,)), trace.features("dense", 60))
    trace.as_image(reshaped(labels, (2, 60), (2, 5, 4, 3)), 1)
    trace.as_image(reshaped(labels, (2, 60), (2, 3, 4, 5)), 1)
    assert trace.out_group("dense") == UNKNOWN_GROUP
    labels = (*named("N", (2,)), trace.features("part", 60))
    half = reshaped((labels[0], trace.sliced(labels[1], 30)), (2, 30), (2, 5, 3, 2))
    trace.as_image(half, 1)
    whole = trace.as_image(reshaped(labels, (2, 60), (2, 5, 4, 3)), 1)
    assert [letter(axis) for axis in whole] == ["N", "C", "S0", "S1"]
    assert trace.out_group("part") == UNKNOWN_GROUP, "its halves are used on their own as well"


def test_a_sum_with_a_flatten_takes_its_order():
    trace = Trace()
    flat = reshaped(IMAGE, (2, 5, 4, 3), (2, 60))
    assert trace.combined(trace.features("dense", 60), flat[1]) == flat[1]
    assert trace.out_group("dense") == (("C", 5), ("S0", 4), ("S1", 3))


def test_residual_sums_share_an_order():
    trace = Trace()
    first, second = trace.features("a", 60), trace.features("b", 60)
    both = trace.combined(first, second)
    trace.as_image(reshaped((*named("N", (2,)), both), (2, 60), (2, 5, 4, 3)), 1)
    assert trace.out_group("a") == trace.out_group("b") == (("C", 5), ("S0", 4), ("S1", 3))


def test_squeeze_and_excite_keeps_channels():
    trace = Trace()
    gate = (*named("N", (2,)), trace.features("gate", 5), (), ())
    out = trace.broadcast([(IMAGE, (2, 5, 4, 3)), (gate, (2, 5, 1, 1))], 4)
    assert out == IMAGE
    assert trace.out_group("gate") is None


@pytest.mark.parametrize("flipped", [False, True])
def test_channels_against_space_is_unknown(flipped):
    pair = [(Atom("C", 1, 4),), (Atom("S0", 1, 4),)]
    assert is_unknown(Trace().combined(*(reversed(pair) if flipped else pair)))


def test_concatenated_parts_keep_their_orders():
    trace = Trace()
    a, b = trace.features("a", 4), trace.features("b", 6)
    assert trace.concatenated([a, b]) == (Atom("F", 1, 10),)
    assert trace.concatenated([(Atom("C", 1, 4),), (Atom("C", 1, 6),)]) == (Atom("C", 1, 10),)
    flat = reshaped(IMAGE, (2, 5, 4, 3), (2, 60))[1]
    joined = trace.concatenated([flat, a, flat])
    image = (("C", 5), ("S0", 4), ("S1", 3))
    assert trace.group_of(joined) == (*image, SEAM, ("F", 4), SEAM, *image)
    assert trace.concatenated([trace.concatenated([flat, a]), flat]) == joined
    assert is_unknown(trace.sliced(joined, 3))
    assert is_unknown(reshaped((joined,), (124,), (2, 62))[0])
    assert reshaped((joined,), (124,), (124, 1)) == (joined, ())
    whole = trace.features("whole", 124)
    assert trace.combined(whole, joined) == joined
    assert trace.out_group("whole") == UNKNOWN_GROUP, "one dense layer does not make such parts"
    assert is_unknown(trace.concatenated([UNKNOWN, a]))


def test_einsum_and_matmul_agree():
    trace = Trace()
    q, k, v = (heads(trace, site) for site in "qkv")
    scores = trace.einsum("nhtd,nhsd->nhts", [q, k])
    assert scores is not None
    assert trace.einsum("nhts,nhsd->nthd", [scores, v]) == tuple(
        trace.attention(q, k, v)[i] for i in (0, 2, 1, 3)
    )
    assert trace.einsum("...d,d->...", [q, v]) is None
    assert trace.einsum("ab->ba", [q]) is None


def test_parameters_outside_layers_are_visited():
    trace = Trace()
    x, table, turned, y = (object() for _ in range(4))
    trace.put_input(x, 0, ("N", "T", "F"), (2, 7, 4))
    trace.put_param(table, {"embedding"}, unknown(2))
    assert trace.passed([table]) == (frozenset(), frozenset({"embedding"}))
    trace.put_param(turned, {"embedding"}, unknown(2))
    assert trace.passed([x, turned]) == (frozenset({"embedding"}), frozenset())
    trace.put(y, {"embedding"}, unknown(3))
    assert trace.visits["embedding"].preds == {"@0"}
