"""How data flows through a Keras model, and what its axes mean on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltcore.errors import gist
from ltcore.parameters import Site, Structure
from ltcore_keras._books import Books
from ltcore_keras._inputs import (
    UntraceableError,
    channels_last,
    entries,
    input_face,
    output_face,
    packed,
)
from ltcore_keras._slots import Slot
from ltcore_keras._symbolic import run, symbolic_input


def described(
    model: Any, sites: tuple[Site, ...], slots: dict[str, Slot], example: Any
) -> Structure:
    """Return the structure with its graph; where that cannot be had, with the reason."""
    try:
        return _traced(model, sites, slots, example)
    except UntraceableError as error:
        return Structure(sites, untraced=str(error))
    except Exception as error:  # noqa: BLE001  the user's code runs here; it may fail in any way
        return Structure(sites, untraced=f"a symbolic call of the model failed: {gist(error)}")


def _traced(model: Any, sites: tuple[Site, ...], slots: dict[str, Slot], example: Any) -> Structure:
    books = Books(sites, slots)
    trace = books.trace
    found = entries(model, sites, example)
    symbols = [symbolic_input(entry.shape, entry.dtype) for entry in found]
    for index, (symbol, entry) in enumerate(zip(symbols, found, strict=True)):
        trace.put_input(symbol, index, entry.names, entry.shape)
    outputs = run(model, packed(model, symbols), books)
    last = channels_last(model)
    ends = [
        output_face(tuple(out.shape), books.labels(out), trace, sites, last=last) for out in outputs
    ]
    placed = trace.placed(_padded(sites, books.paddings), outputs)
    faces = [input_face(entry, index, trace, sites, last=last) for index, entry in enumerate(found)]
    return Structure(placed, tuple(faces), tuple(ends))


def _padded(
    sites: Sequence[Site], paddings: Mapping[str, list[list[int]] | None]
) -> tuple[Site, ...]:
    """Return the sites with the padding that each applies."""
    return tuple(
        replace(site, attrs={**site.attrs, "padding": padding})
        if (padding := paddings.get(site.name))
        else site
        for site in sites
    )
