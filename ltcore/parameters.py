"""What a model is to ltcore: sites with roles, described once, in portable names.

A *site* is one computation that bears parameters; its *roles* are its arrays ("weight", "bias",
"running_mean"). ``"<site>.<role>"`` is a parameter's portable name. It depends on the model's
structure only, never on counters of the process.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ltcore.arrays import Array, Params
from ltcore.errors import InvalidValueError, NothingPrunableError
from ltcore.layouts import (
    KINDS,
    UNKNOWN_GROUP,
    AxisGroup,
    group_size,
    output_axis,
    reorder,
    segments,
)

MAX_FACE = 1 << 26
"""Numbers in one example of an input or output; a probe makes such arrays."""

FACE_DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class Role:
    """One array of a site.

    Attributes:
        name: the role's standard name, such as ``weight``, ``bias``, ``running_mean``.
        native: what the framework calls it.
        shape: its canonical shape.
        dtype: the dtype it has in the model, such as ``float32`` or ``bfloat16``.
        state: True for a buffer: it is rewound, never trained or pruned.
        portable: False for what has no twin in other frameworks (``num_batches_tracked``, the
            constants that a layer of the user's own keeps in buffers).
        aliases: native names of further places that share this array (tied weights).
    """

    name: str
    native: str
    shape: tuple[int, ...]
    dtype: str
    state: bool = False
    portable: bool = True
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """One computation that bears parameters.

    Attributes:
        name: portable name, unique in the model.
        kind: a key of `ltcore.layouts.KINDS`.
        roles: its arrays.
        attrs: what must agree for two sites to compute the same (stride, eps, ...); for a site of
            kind ``raw``, ``reason`` may say what about it is not known.
        preds: names of the nearest upstream sites; None where the graph is not known, or the site
            did not run.
        in_group: order of the input features, where a flatten mixed channels and space.
        is_output: its result is (part of) the model's output.
        out_group: order of the output features, where they are reshaped to channels and space.
        part: ``q``, ``k``, ``v`` or ``o``, for the projections of an attention layer.
    """

    name: str
    kind: str
    roles: tuple[Role, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    preds: tuple[str, ...] | None = None
    in_group: AxisGroup | None = None
    is_output: bool = False
    out_group: AxisGroup | None = None
    part: str = ""

    @property
    def matched(self) -> bool:
        """Whether another framework has a twin; False for a site of constants only."""
        return any(role.portable for role in self.roles)

    def role(self, name: str) -> Role | None:
        """Return the role called ``name``, or None."""
        return next((role for role in self.roles if role.name == name), None)


@dataclass(frozen=True, slots=True)
class Interface:
    """An input or output of a model in canonical axes.

    Attributes:
        axes: one letter-like label an axis: ``("N", "C", "S0", "S1")``, ``("N", "F")``,
            ``("N", "T")`` for token numbers.
        shape: sizes in that order, the batch axis as 0.
        dtype: ``float32`` for features, an integer dtype for tokens.
        vocabulary: token numbers are below it; None for features.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """What a criterion or a selector may know of a parameter besides its values."""

    name: str
    kind: str
    role: str
    shape: tuple[int, ...]
    is_output: bool
    prunable: bool

    @property
    def output_axis(self) -> int | None:
        """The axis of the output features; None where there is none."""
        return output_axis(self.kind, self.role)


@dataclass(frozen=True)
class Structure:
    """A model's sites in the order in which the model lists its layers.

    Attributes:
        sites: all of them; their order is the order of parameters everywhere.
        inputs: the model's inputs, None where they are not known.
        outputs: the model's outputs, None where they are not known.
        untraced: why the graph is not known; empty where it is.
    """

    sites: tuple[Site, ...]
    inputs: tuple[Interface, ...] | None = None
    outputs: tuple[Interface, ...] | None = None
    untraced: str = ""

    def items(self) -> Iterator[tuple[str, Site, Role]]:
        """Yield ``(parameter name, site, role)`` in order."""
        for site in self.sites:
            for role in site.roles:
                yield f"{site.name}.{role.name}", site, role

    @cached_property
    def by_name(self) -> Mapping[str, tuple[Site, Role]]:
        """``{parameter name: (site, role)}``."""
        return {name: (site, role) for name, site, role in self.items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """``{parameter name: canonical shape}``."""
        return {name: role.shape for name, _, role in self.items()}

    @cached_property
    def infos(self) -> tuple[ParamInfo, ...]:
        """What selectors match against: every trained parameter, in order."""
        kernels = [site.name for site in self.sites if KINDS[site.kind].prunable]
        outputs = self.heads or kernels[-1:]  # without a graph, the last layer with a kernel
        return tuple(
            ParamInfo(
                name=name,
                kind=site.kind,
                role=role.name,
                shape=role.shape,
                is_output=site.name in outputs,
                prunable=role.name in KINDS[site.kind].prunable,
            )
            for name, site, role in self.items()
            if not role.state
        )

    @cached_property
    def heads(self) -> frozenset[str]:
        """The output layers: kernels whose result is an output, and goes nowhere else.

        None where the graph is not known, or the model ends in something else, such as a norm or
        its own embedding.
        """
        feeding = {pred for site in self.sites for pred in site.preds or ()}
        return frozenset(
            site.name
            for site in self.sites
            if site.is_output
            and site.name not in feeding
            and "weight" in KINDS[site.kind].prunable
            and not any(role.aliases for role in site.roles)
        )

    def check(self) -> None:
        """Raise unless the parts agree with each other; for structures from outside.

        Raises:
            InvalidValueError: says which site and what is wrong with it.
        """
        names = {site.name for site in self.sites}
        if len(names) != len(self.sites):
            raise InvalidValueError("two sites have one name")
        for site in self.sites:
            _check_site(site, names)
        for face in (*(self.inputs or ()), *(self.outputs or ())):
            _check_face(face)

    def why_not_portable(self) -> str:
        """Return what keeps a ticket of this model in its own framework, or an empty string."""
        if self.untraced:
            return self.untraced
        if not self.inputs or not self.outputs:
            return "its inputs and outputs are not known, so nothing can be proved"
        for site in self.sites:
            if site.matched and not KINDS[site.kind].portable:
                reason = site.attrs.get("reason", "")
                natives = [role.native for role in site.roles if role.portable][:5]
                return (
                    f"site {site.name!r} is of a kind that has no portable layout "
                    f"({reason or f'it owns {natives}'})"
                )
            if site.matched and site.preds is None:
                return f"site {site.name!r} did not run on the example, so nothing of it is proved"
            if site.in_group == UNKNOWN_GROUP:
                return f"the order of the features that enter {site.name!r} could not be proven"
            if site.out_group == UNKNOWN_GROUP:
                return f"the order of the features that leave {site.name!r} could not be proven"
        return ""


def _check_site(site: Site, names: set[str]) -> None:
    roles = [role.name for role in site.roles]
    if len(set(roles)) != len(roles) or any("." in role for role in roles):
        raise InvalidValueError(f"site {site.name!r} has roles {roles}: twice, or with a dot")
    strangers = set(site.preds or ()) - names
    if strangers:
        raise InvalidValueError(f"site {site.name!r} follows {sorted(strangers)}, which is no site")
    for group, axes in _grouped_axes(site):
        whole = all(size > 0 for part in segments(group) for _, size in part)
        for role, axis in axes:
            if not whole or group_size(group) != role.shape[axis]:
                raise InvalidValueError(
                    f"site {site.name!r}: features {group} do not make an axis of "
                    f"{role.shape[axis]}"
                )


def _check_face(face: Interface) -> None:
    fits = len(face.axes) == len(face.shape) and all(size >= 0 for size in face.shape)
    fits = fits and (face.vocabulary is None or 0 < face.vocabulary < 1 << 31)
    if not fits or math.prod(face.shape[1:]) > MAX_FACE or face.dtype not in FACE_DTYPES:
        raise InvalidValueError(
            f"an input or output has axes {face.axes}, shape {face.shape} and dtype "
            f"{face.dtype!r}; expected one size an axis, at most {MAX_FACE:,} numbers an example, "
            f"and a dtype of {FACE_DTYPES}"
        )


def _grouped_axes(site: Site) -> Iterator[tuple[AxisGroup, list[tuple[Role, int]]]]:
    """Yield each known group of a site with the ``(role, axis)`` that lie in its order."""
    kind = KINDS[site.kind]
    for group, axes in ((site.in_group, kind.ins), (site.out_group, kind.outs)):
        if group is not None and group != UNKNOWN_GROUP:
            found = [(role, axes[role.name]) for role in site.roles if role.name in axes]
            # One slope for all features (PReLU) has no order.
            yield group, [(role, axis) for role, axis in found if role.shape[axis] != 1]


def prunable_infos(infos: tuple[ParamInfo, ...]) -> tuple[ParamInfo, ...]:
    """Return the parameters that masks touch by default.

    Raises:
        NothingPrunableError: there is none.
    """
    chosen = tuple(info for info in infos if info.prunable)
    if not chosen:
        names = [info.name for info in infos]
        raise NothingPrunableError(
            f"the model has nothing to prune: none of its parameters {names} is a kernel of a "
            "dense or convolutional layer; name what to prune with prunable=[...]"
        )
    return chosen


def in_canonical_order(arrays: Params, structure: Structure) -> dict[str, Array]:
    """Return ``arrays`` with the features behind a flatten ordered channels first.

    Backends, holds and tickets in memory keep the order of their framework. It is left only where
    frameworks meet: in selection (so that ties fall alike), in files, and in exchange.
    """
    return _reordered(arrays, structure, to_canonical=True)


def in_native_order(arrays: Params, structure: Structure) -> dict[str, Array]:
    """Undo `in_canonical_order`."""
    return _reordered(arrays, structure, to_canonical=False)


def _reordered(arrays: Params, structure: Structure, *, to_canonical: bool) -> dict[str, Array]:
    result = dict(arrays)
    for site in structure.sites:
        for group, axes in _grouped_axes(site):
            for role, axis in axes:
                name = f"{site.name}.{role.name}"
                if name in result:
                    result[name] = reorder(result[name], axis, group, to_canonical=to_canonical)
    return result
