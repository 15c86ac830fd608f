"""A rewind policy at work on a model: what it may see, and what it may return."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltcore.arrays import Params, check_finite
from ltcore.backend import Backend
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.rewinding import FunctionPolicy, RewindContext, RewindPolicy
from ltcore.seeds import REDRAWS, REWINDS, generator


@dataclass(frozen=True, slots=True)
class Start:
    """Whose start is wanted: a model, and what random numbers are drawn from."""

    backend: Backend
    model: Any
    structure: Structure
    seed: int
    index: int = 0


def start_params(
    policy: RewindPolicy,
    start: Start,
    masks: Masks,
    snapshots: Mapping[int, Params],
    trained: Params,
) -> Params:
    """Return the params that ``policy`` gives, in the model's dtypes and native feature order.

    The policy itself sees canonical feature order, so what it draws falls on the same weights in
    every framework.

    Raises:
        InvalidValueError: names are missing or unknown, or a shape differs.
        NonFiniteError: a parameter is NaN or infinite.
    """
    structure = start.structure
    seed = int(generator(start.seed, start.index, REDRAWS).integers(2**31))

    def ordered(params: Params) -> Params:
        return in_canonical_order(params, structure)

    def redraw() -> Params:
        return ordered(start.backend.redraw(start.model, structure, seed))

    context = RewindContext(
        masks=Masks.adopt(in_canonical_order(masks, structure)),
        snapshots={step: ordered(params) for step, params in snapshots.items()},
        trained=ordered(trained),
        redraw=redraw,
        rng=generator(start.seed, start.index, REWINDS),
    )
    given = policy.rewind(context)
    rewound = _checked(given, context.trained, structure, _name_of(policy))
    return in_native_order(rewound, structure)


def _name_of(policy: RewindPolicy) -> str:
    """Return what a policy is called in messages."""
    return policy.name if isinstance(policy, FunctionPolicy) else type(policy).__name__


def _checked(rewound: Params, like: Params, structure: Structure, policy: str) -> Params:
    """Return what a policy gave, in the model's dtypes; a plugin's mistake must not train on."""
    if not isinstance(rewound, Mapping):
        raise InvalidValueError(
            f"rewind policy {policy} returned {type(rewound).__name__}; expected "
            "{name: array} of all params and buffers of the model"
        )
    missing = [name for name in like if name not in rewound]
    unknown = [name for name in rewound if name not in like]
    shapes = [
        f"{name}: {np.shape(rewound[name])}, expected {array.shape}"
        for name, array in like.items()
        if name in rewound and np.shape(rewound[name]) != array.shape
    ]
    if missing or unknown or shapes:
        raise InvalidValueError(
            f"rewind policy {policy} must return all params and buffers of the model; missing "
            f"{missing}, unknown {unknown}, shapes {shapes}"
        )
    cast = {name: np.asarray(rewound[name], array.dtype) for name, array in like.items()}
    check_finite({info.name: cast[info.name] for info in structure.infos})
    return cast
