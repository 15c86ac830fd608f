"""Masks as bytes: what is written is read, is small, and is trusted only if every bit fits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltcore import maskcoding
from ltcore.errors import MaskError, TicketFileError
from ltcore.maskcoding import CodedMask, decode, encode

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=30)


def bound(mask):
    """n * H(p) / 8: no code of random masks can take fewer bytes."""
    p = mask.mean()
    return -mask.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8


def random_mask(n, density, seed=0):
    return np.random.default_rng(seed).random(n) < density


def force_gaps(mask, k):
    """The mask in gaps with this divisor, however large that is."""
    gaps = maskcoding._gaps(mask.reshape(-1))
    return CodedMask("gaps", maskcoding._encode_gaps(gaps, k), int(mask.sum()), k)


@given(hnp.arrays(np.bool_, SHAPES, elements=st.booleans()))
def test_what_is_encoded_is_decoded(mask):
    coded = encode(mask)
    decoded = decode(coded, mask.shape)
    assert decoded.dtype == np.bool_
    assert decoded.shape == mask.shape
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, mask)
    assert coded.data.size <= -(-mask.size // 8)


@given(
    mask=hnp.arrays(np.bool_, st.integers(0, 400), elements=st.booleans(), fill=st.just(False)),
    k=st.one_of(st.integers(1, 70), st.integers(1, 1 << 30), st.just(1 << 30)),
)
def test_any_divisor_round_trips(mask, k):
    np.testing.assert_array_equal(decode(force_gaps(mask, k), mask.shape), mask)


@given(st.integers(1, 3000), st.floats(0, 0.5), st.integers(0, 9))
def test_the_size_is_predicted_exactly(n, density, seed):
    gaps = maskcoding._gaps(random_mask(n, density, seed))
    k = maskcoding._cheapest_k(gaps)
    assert maskcoding._encode_gaps(gaps, k).size == maskcoding._coded_bytes(gaps, k)


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9, 0.95, 0.986, 0.999])
def test_random_masks_take_hardly_more_than_their_entropy(sparsity):
    mask = random_mask(1_000_000, 1 - sparsity)
    coded = encode(mask)
    assert coded.encoding == "gaps"
    assert coded.data.size <= 1.01 * bound(mask)
    np.testing.assert_array_equal(decode(coded, mask.shape), mask)


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.2, 0.3])
def test_the_divisor_is_near_the_best_of_all(density):
    gaps = maskcoding._gaps(random_mask(20_000, density))
    best = min(maskcoding._coded_bytes(gaps, k) for k in range(1, 3000))
    assert maskcoding._coded_bytes(gaps, maskcoding._cheapest_k(gaps)) <= 1.005 * best + 1


@pytest.mark.parametrize(
    ("mask", "encoding", "size"),
    [
        (np.zeros(0, np.bool_), "bits", 0),
        (np.zeros((3, 0), np.bool_), "bits", 0),
        (np.array(True), "bits", 1),
        (np.array(False), "gaps", 0),
        (np.zeros((40, 50), np.bool_), "gaps", 0),
        (np.ones((40, 50), np.bool_), "bits", 250),
        (np.arange(2000) == 1999, "gaps", 3),
        (np.arange(16) % 2 == 0, "bits", 2),
        (np.arange(800) < 600, "bits", 100),
    ],
    ids=["empty", "empty2d", "0d", "0d pruned", "none", "all", "last", "half", "dense"],
)
def test_edges(mask, encoding, size):
    coded = encode(mask)
    assert (coded.encoding, coded.data.size) == (encoding, size)
    np.testing.assert_array_equal(decode(coded, mask.shape), mask)
    assert decode(coded, mask.shape).shape == mask.shape


def test_bits_are_in_c_order_lowest_bit_first():
    mask = np.array([[1, 0, 0, 1, 1], [1, 1, 0, 1, 1]], np.bool_)
    np.testing.assert_array_equal(encode(mask).data, [0b01111001, 0b11])
    np.testing.assert_array_equal(encode(np.asfortranarray(mask)).data, [0b01111001, 0b11])


def test_gaps_by_eye():
    """Gaps 5, 0, 4 over 3: quotients 1, 0, 1; remainders 2, 0, 1, of which only 0 is short."""
    mask = np.zeros(100, np.bool_)
    mask[[5, 6, 11]] = True
    assert np.array_equal(force_gaps(mask, 3).data, [0b101, 0b01, 0b10110])
    # over 4: quotients 1, 0, 1; remainders 1, 0, 0 in two bits each, none longer
    assert np.array_equal(force_gaps(mask, 4).data, [0b01, 0b10110])


def test_masks_of_another_dtype_are_refused():
    with pytest.raises(MaskError, match=r"float32.*bool"):
        encode(np.ones(3, np.float32))


BITS = encode(np.arange(10) % 2 == 0)
GAPS = force_gaps(np.isin(np.arange(100), [5, 6, 11]), 3)


def u8(*values):
    return np.array(values, np.uint8)


HOSTILE = {
    "unknown encoding": (replace(BITS, encoding="zip"), (10,), "'zip'.*bits.*gaps"),
    "signed bytes": (replace(BITS, data=BITS.data.astype(np.int8)), (10,), "int8"),
    "two rows": (replace(BITS, data=BITS.data.reshape(1, 2)), (10,), r"shape \(1, 2\)"),
    "more kept than weights": (replace(BITS, kept=11), (10,), "11 weights.*0 to 10"),
    "negative kept": (replace(BITS, kept=-1), (10,), "-1"),
    "kept is a bool": (replace(BITS, kept=True), (10,), "keeps True weights"),
    "kept is a float": (replace(BITS, kept=5.0), (10,), r"5\.0"),
    "kept is missing": (replace(BITS, kept=None), (10,), "None"),
    "bits: kept disagrees": (replace(BITS, kept=4), (10,), "keeps 5 weights; expected 4"),
    "bits: with a divisor": (replace(BITS, k=1), (10,), "divisor 1"),
    "bits: too short": (replace(BITS, data=u8(1)), (10,), "1 bytes; 10 weights take 2"),
    "bits: too long": (replace(BITS, data=u8(0, 0, 0)), (10,), "3 bytes; 10 weights take 2"),
    "bits: pad bits set": (
        replace(BITS, data=u8(0b1010101, 0b101)),
        (10,),
        "pad bits.*0x05, of which 2",
    ),
    "bits: another shape": (BITS, (3, 7), "2 bytes; 21 weights take 3"),
    "gaps: no divisor": (replace(GAPS, k=None), (100,), "divisor None"),
    "gaps: divisor 0": (replace(GAPS, k=0), (100,), "divisor 0"),
    "gaps: divisor a float": (replace(GAPS, k=3.0), (100,), r"divisor 3\.0"),
    "gaps: divisor too large": (replace(GAPS, k=(1 << 30) + 1), (100,), "divisor 1073741825"),
    "gaps: empty": (replace(GAPS, data=u8()), (100,), "0 bytes, too few for 3"),
    "gaps: remainders cut": (replace(GAPS, k=1 << 30), (100,), "3 bytes left.*remainders take 12"),
    "gaps: last bits cut": (
        replace(GAPS, data=GAPS.data[:1]),
        (100,),
        "0 bytes left.*last bits.*take 1",
    ),
    "gaps: quotients cut": (
        replace(GAPS, data=GAPS.data[:2]),
        (100,),
        "keeps 0 weights; expected 3",
    ),
    "gaps: pad bits of remainders": (
        replace(GAPS, data=u8(0b1101, 1, 0b10110)),
        (100,),
        "pad bits.*remainders.*0x0d",
    ),
    "gaps: pad bits of last bits": (
        replace(GAPS, data=u8(0b101, 0b101, 0b10110)),
        (100,),
        "pad bits.*last bits.*0x05",
    ),
    "gaps: one more quotient": (
        replace(GAPS, data=u8(0b101, 1, 0b1010110)),
        (100,),
        "keeps 4 weights; expected 3",
    ),
    "gaps: a byte behind": (replace(GAPS, data=u8(0b101, 1, 0b10110, 0)), (100,), "1 bytes after"),
    "gaps: kept disagrees": (replace(GAPS, kept=0), (100,), "keeps .* expected 0"),
    "gaps: a byte for none": (CodedMask("gaps", u8(0), 0, 1), (100,), "1 bytes after"),
    "gaps: one past the end": (GAPS, (11,), "11 weights keeps position 11"),
    "gaps: far past the end": (
        force_gaps(np.array([False] * 99 + [True]), 1 << 30),
        (50,),
        "position 99",
    ),
    "gaps: past the end by far more than 32 bits": (
        CodedMask("gaps", u8(*[255] * 31), 8, 1 << 30),
        (9,),
        "keeps position 8589934591",
    ),
}


@pytest.mark.parametrize(("coded", "shape", "match"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_masks_are_refused(coded, shape, match):
    with pytest.raises(TicketFileError, match=match):
        decode(coded, shape)


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 300))
def test_noise_is_refused_or_is_a_mask_of_that_many(data, kept, k, total):
    coded = CodedMask("gaps", np.frombuffer(data, np.uint8), kept, k)
    try:
        mask = decode(coded, (total,))
    except TicketFileError:
        return
    assert np.count_nonzero(mask) == kept
    assert np.array_equal(force_gaps(mask, k).data, coded.data)  # one code, one mask


@pytest.mark.parametrize("mask", [random_mask(200, 0.04), random_mask(61, 0.6)])
def test_an_altered_bit_changes_the_mask_or_is_refused(mask):
    coded = encode(mask)
    for bit in range(8 * coded.data.size):
        data = coded.data.copy()
        data[bit // 8] ^= 1 << (bit % 8)
        try:
            assert not np.array_equal(decode(replace(coded, data=data), mask.shape), mask)
        except TicketFileError:
            continue
