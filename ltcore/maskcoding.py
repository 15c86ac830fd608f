"""A boolean mask as bytes: one bit a weight, or Golomb-coded gaps between the kept ones.

Gaps win above about half sparsity and come within a percent of the entropy of a random mask, so
a file needs no general compressor. Everything is vectorised; each part of a code has its own
stream, because a stream of mixed lengths could only be decoded weight by weight.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import MaskError, TicketFileError
from ltcore.strictjson import shown

ENCODINGS = ("bits", "gaps")
MAX_K = 1 << 30
REFINEMENTS = (5, 6, 7, 8, 10, 12, 14)
"""Divisors tried around a power of two, in eighths of it."""


@dataclass(frozen=True, eq=False)
class CodedMask:
    """A mask as it stands in a file.

    Attributes:
        encoding: ``"bits"``: `numpy.packbits` in little bit order over C order, pad bits zero.
            ``"gaps"``: Golomb code of the number of pruned weights before each kept one since
            the kept one before it, as three streams in little bit order, each zero-padded to a
            byte: the remainders' leading bits, their last bits where they have one more, then
            the quotients in unary, q zeros and a one.
        data: uint8 array (bytes,).
        kept: how many weights are kept.
        k: the divisor of the Golomb code, 1 to 2**30; None for ``"bits"``. A remainder r takes
            ``b = floor(log2 k)`` bits if ``r < 2**(b+1) - k``; else it is stored as
            ``r + 2**(b+1) - k`` in b + 1 bits.
    """

    encoding: str
    data: Array
    kept: int
    k: int | None


def encode(mask: Array) -> CodedMask:
    """Return ``mask`` in the encoding that takes fewer bytes, ``"bits"`` on a tie.

    Args:
        mask: bool array of any shape, True = kept.

    Raises:
        MaskError: ``mask`` is not boolean.

    >>> encode(np.arange(100) == 42).encoding
    'gaps'
    """
    if mask.dtype != np.bool_:
        raise MaskError(f"cannot encode a mask of dtype {mask.dtype}; expected bool, True = kept")
    flat = mask.reshape(-1)
    kept = int(np.count_nonzero(flat))
    # A gap takes at least a bit, so above half density there is little to win; not looking
    # there also keeps the 8-byte positions below 4 bytes a weight.
    if 2 * kept <= flat.size:
        gaps = _gaps(flat)
        k = _cheapest_k(gaps)
        if _coded_bytes(gaps, k) < _bytes_for(flat.size):
            return CodedMask("gaps", _encode_gaps(gaps, k), kept, k)
    return CodedMask("bits", np.packbits(flat, bitorder="little"), kept, None)


def decode(coded: CodedMask, shape: tuple[int, ...]) -> Array:
    """Return the mask, an owned bool array of ``shape``, after checking every bit of it.

    Memory is bounded by a small multiple of ``prod(shape)`` plus 8 times the data; a caller who
    does not trust ``shape`` bounds it first, for gaps can claim a huge mask in a few bytes.

    Raises:
        TicketFileError: the data is no such mask; says what was found and what was expected.
    """
    total = math.prod(shape)
    data, kept = coded.data, coded.kept
    if coded.encoding not in ENCODINGS:
        raise TicketFileError(
            f"mask encoding {coded.encoding!r} is unknown; this version knows {list(ENCODINGS)}"
        )
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TicketFileError(
            f"mask data is {data.dtype} of shape {data.shape}; expected one row of uint8"
        )
    if type(kept) is not int or not 0 <= kept <= total:
        raise TicketFileError(f"a mask keeps {shown(kept)} weights; expected 0 to {total}")
    if coded.encoding == "bits":
        return _decode_bits(data, kept, total, coded.k).reshape(shape)
    mask = np.zeros(total, np.bool_)
    mask[_decode_gaps(data, kept, total, coded.k)] = True
    return mask.reshape(shape)


def _decode_bits(data: Array, kept: int, total: int, k: object) -> Array:
    if k is not None:
        raise TicketFileError(f"a mask of bits has the divisor {shown(k)}; expected none")
    if data.size != _bytes_for(total):
        raise TicketFileError(
            f"mask data has {data.size} bytes; {total} weights take {_bytes_for(total)}"
        )
    mask = _take_bits(data, total, "mask bits").view(np.bool_)
    found = int(np.count_nonzero(mask))
    if found != kept:
        raise TicketFileError(f"mask data keeps {found} weights; expected {kept}")
    return mask


def _gaps(flat: Array) -> Array:
    """Return how many pruned weights stand before each kept one since the one before, (kept,)."""
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    # Division is the slow part of the search for k, and twice as fast on 32 bits.
    return gaps.astype(np.uint32) if flat.size < 1 << 32 else gaps


def _cheapest_k(gaps: Array) -> int:
    """Return a divisor whose code is the smallest, up to an eighth of the divisor.

    Doubling k costs each gap a bit and saves half of its quotient, rounded up; what is saved
    only falls as k grows, so the first doubling that does not pay ends the search.
    """
    k, quotients = 1, gaps
    while k < MAX_K:
        halves = quotients >> 1
        if (quotients - halves).sum(dtype=np.int64) <= gaps.size:
            break
        k, quotients = 2 * k, halves
    near = {max(1, min(k * eighths // 8, MAX_K)) for eighths in REFINEMENTS}
    return min(sorted(near), key=lambda k: _coded_bytes(gaps, k))


def _coded_bytes(gaps: Array, k: int) -> int:
    bits, short = _remainder_form(k)
    quotients = gaps // k
    longer = int(np.count_nonzero(gaps - quotients * k >= short))
    unary = gaps.size + int(quotients.sum(dtype=np.int64))
    return _bytes_for(gaps.size * bits) + _bytes_for(longer) + _bytes_for(unary)


def _remainder_form(k: int) -> tuple[int, int]:
    """Return b, the bits of a short remainder, and how many of the k remainders are short."""
    bits = k.bit_length() - 1
    return bits, (2 << bits) - k


def _encode_gaps(gaps: Array, k: int) -> Array:
    bits, short = _remainder_form(k)
    quotients, remainders = np.divmod(gaps, k)
    long = remainders >= short
    leading = np.where(long, (remainders + short) >> 1, remainders)
    last = (remainders[long] + short) & 1
    unary = np.zeros(gaps.size + int(quotients.sum(dtype=np.int64)), np.uint8)
    unary[np.cumsum(quotients.astype(np.int64) + 1) - 1] = 1
    return np.concatenate([_pack_numbers(leading, bits), _pack(last), _pack(unary)])


def _decode_gaps(data: Array, kept: int, total: int, k: object) -> Array:
    """Return the positions of the kept weights, int64 (kept,), ascending and below ``total``."""
    if type(k) is not int or not 1 <= k <= MAX_K:
        raise TicketFileError(f"a mask of gaps has the divisor {shown(k)}; expected 1 to {MAX_K}")
    if kept > 8 * data.size:  # before anything of that size is made: each takes at least a bit
        raise TicketFileError(f"mask data has {data.size} bytes, too few for {kept} kept weights")
    bits, short = _remainder_form(k)
    leading, data = _split(data, kept * bits, "remainders")
    remainders = _unpack_numbers(leading, bits, kept)
    long = remainders >= short
    last, data = _split(data, int(np.count_nonzero(long)), "last bits of remainders")
    remainders[long] = 2 * remainders[long] + last - short
    quotients = _decode_unary(data, kept)
    # Summed in Python's integers first: a hostile file could overflow 64 bits in the cumsum.
    needed = int(quotients.sum()) * k + int(remainders.sum()) + kept
    if needed > total:
        raise TicketFileError(f"a mask over {total} weights keeps position {needed - 1}")
    return np.cumsum(quotients * k + remainders + 1) - 1


def _decode_unary(data: Array, kept: int) -> Array:
    """Return the quotients, int64 (kept,), of a stream that must end with its last one."""
    ones = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    if ones.size != kept:
        raise TicketFileError(f"mask data keeps {ones.size} weights; expected {kept}")
    used = _bytes_for(int(ones[-1]) + 1) if kept else 0
    if data.size != used:
        raise TicketFileError(f"mask data has {data.size - used} bytes after its last weight")
    return np.diff(ones, prepend=-1) - 1


def _bytes_for(bits: int) -> int:
    return -(-bits // 8)


def _pack(bits: Array) -> Array:
    return np.packbits(bits.astype(np.uint8, copy=False), bitorder="little")


def _pack_numbers(numbers: Array, bits: int) -> Array:
    octets = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)  # (kept,) -> (kept, 4)
    return _pack(np.unpackbits(octets, axis=1, count=bits, bitorder="little"))


def _unpack_numbers(bits: Array, width: int, count: int) -> Array:
    octets = np.zeros((count, 4), np.uint8)
    rows = np.packbits(bits.reshape(count, width), axis=1, bitorder="little")
    octets[:, : rows.shape[1]] = rows
    return octets.reshape(-1).view("<u4").astype(np.int64)  # (count, 4) -> (count,)


def _split(data: Array, bits: int, what: str) -> tuple[Array, Array]:
    """Return the next stream, uint8 (bits,) of zeros and ones, and the data behind it."""
    size = _bytes_for(bits)
    if data.size < size:
        raise TicketFileError(f"mask data has {data.size} bytes left; its {what} take {size}")
    return _take_bits(data[:size], bits, what), data[size:]


def _take_bits(data: Array, count: int, what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if count % 8 and data[-1] >> (count % 8):
        raise TicketFileError(
            f"mask data has pad bits set: the last byte of its {what} is {int(data[-1]):#04x}, "
            f"of which {count % 8} bits count"
        )
    return np.unpackbits(data, count=count, bitorder="little")
