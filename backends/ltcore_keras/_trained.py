"""The trained parameters of a model and the variables that they are, or are parts of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.arrays import Array, Params
from ltcore.errors import InvalidValueError
from ltcore.parameters import Structure
from ltcore_keras._names import sites_of
from ltcore_keras._slots import Slot, to_canonical


@dataclass(frozen=True, slots=True)
class Trained:
    """What a model's derivatives are taken by.

    Attributes:
        slots: where all parameters and buffers live.
        variables: what the trained parameters live in, each once.
        places: ``{name: position in variables}`` of every trained parameter.
    """

    slots: Mapping[str, Slot]
    variables: Sequence[Any]
    places: Mapping[str, int]

    def canonical(self, tensors: Iterable[Any]) -> dict[str, Array]:
        """Return ``{name: array}``, given a tensor for each of the variables."""
        found = list(tensors)
        return {
            name: to_canonical(found[place], self.slots[name])
            for name, place in self.places.items()
        }

    def check_vector(self, vector: Params) -> None:
        """Raise unless ``vector`` has trained parameters only.

        Raises:
            InvalidValueError: names the others.
        """
        strangers = sorted(vector.keys() - self.places.keys())
        if strangers:
            raise InvalidValueError(f"vector has {strangers}, which are no trained parameters")

    def check_point(self, at: Params) -> None:
        """Raise unless ``at`` has all parameters and buffers.

        Raises:
            InvalidValueError: names what is missing, and what is no part of the model.
        """
        missing, strangers = (
            sorted(a.keys() - b.keys()) for a, b in ((self.slots, at), (at, self.slots))
        )
        if missing or strangers:
            raise InvalidValueError(
                f"expected every parameter and buffer of the model: {missing} are missing, "
                f"{strangers} are none of them"
            )


def trained(model: Any, structure: Structure) -> Trained:
    """Return what of ``model`` is trained, frozen or not: all but buffers."""
    slots = sites_of(model)[1]
    names = [name for name, _, role in structure.items() if not role.state]
    once = {id(slots[name].variable): slots[name].variable for name in names}
    positions = {key: position for position, key in enumerate(once)}
    places = {name: positions[id(slots[name].variable)] for name in names}
    return Trained(slots, list(once.values()), places)
