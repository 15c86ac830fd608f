"""What a backend promises about derivatives and activations, each where it has the capability."""

import math
from typing import Any, TypeAlias
from unittest import SkipTest

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.errors import CapabilityError
from ltcore.layouts import CONVOLUTIONS
from ltcore.parameters import Structure
from ltcore.testing.cases import CASES, canonical_inputs, canonical_targets
from ltcore.testing.reference import ReferenceBackend
from ltcore.testing.reference_layers import Conv, ConvTranspose, Layer
from ltcore.testing.reference_model import NumpyModel, mean_squared_error
from ltcore.testing.suite_hooks import (
    BackendHooks,
    assert_near,
    assert_pruned,
    assert_same,
    made_up_params,
    reference_of,
    renamed,
    some_masks,
)

Batches: TypeAlias = list[tuple[Any, Any]]

_REFERENCE = ReferenceBackend()
_KERNELS = ("linear", *CONVOLUTIONS)


class GradientChecks(BackendHooks):
    """Gradients, fisher, hvp, vjp, activations."""

    # gradients

    def test_gradients_equal_the_reference(self, case: str) -> None:
        """Gradients are canonical, and averaged over batches."""
        self.need("gradients")
        model, structure = self.prepared(case)
        found = self.backend().gradients(model, structure, self.batches(case), self.loss())
        assert list(found) == trained(structure), (
            "gradients come for every trained parameter, in order"
        )
        twin, described = prepared_reference(case)
        wanted = _REFERENCE.gradients(twin, described, canonical(case), mean_squared_error)
        assert_near(
            found,
            renamed(wanted, described, structure),
            1e-3,
            "gradients, in inference mode and averaged over batches, equal those found by "
            "differences",
        )

    # fisher

    def test_fisher_is_the_mean_of_squared_gradients(self, case: str) -> None:
        """Fisher squares the gradients of single examples, and averages over all of them."""
        self.need("gradients")
        backend = self.backend()
        model, structure = self.prepared(case)
        found = backend.fisher(model, structure, self.native(case, (0, 1), (1, 3)), self.loss())
        assert list(found) == trained(structure), (
            "fisher comes for every trained parameter, in order"
        )
        singles = [self.native(case, (i, i + 1)) for i in range(3)]
        gradients = [backend.gradients(model, structure, one, self.loss()) for one in singles]
        wanted = {
            name: np.mean([one[name].astype(np.float64) ** 2 for one in gradients], axis=0)
            for name in found
        }
        assert_near(
            found,
            wanted,
            1e-4,
            "fisher is the mean, over all examples and not over batches, of the squared gradient "
            "of the loss of a batch of one",
        )

    # hvp

    def test_hvp_equals_the_reference(self, case: str) -> None:
        """The product is with the true Hessian of the mean loss."""
        self.need("hvp")
        model, structure = self.prepared(case)
        twin, described = prepared_reference(case)
        vector = random_vector(described)
        found = self.backend().hvp(
            model, structure, self.batches(case), self.loss(), renamed(vector, described, structure)
        )
        assert list(found) == trained(structure), "hvp comes for every trained parameter, in order"
        wanted = _REFERENCE.hvp(twin, described, canonical(case), mean_squared_error, vector)
        assert_near(
            found,
            renamed(wanted, described, structure),
            1e-3,
            "hvp, in inference mode and averaged over batches, equals the central difference of "
            "gradients along the vector (no Gauss-Newton, no sum over batches)",
        )

    def test_hvp_is_linear_and_symmetric(self, case: str) -> None:
        """A Hessian is a symmetric matrix."""
        self.need("hvp")
        model, structure = self.prepared(case)
        u, v = random_vector(structure, seed=1), random_vector(structure, seed=2)
        mixed = {name: u[name] - 3 * v[name] for name in u}
        of_u, of_v, of_mixed = (
            self.backend().hvp(model, structure, self.batches(case), self.loss(), vector)
            for vector in (u, v, mixed)
        )
        combined = {name: of_u[name].astype(np.float64) - 3 * of_v[name] for name in of_u}
        assert_near(of_mixed, combined, 1e-3, "hvp is linear in the vector")
        left, right = inner(v, of_u), inner(u, of_v)
        scale = math.sqrt(inner(v, v) * inner(of_u, of_u))
        assert abs(left - right) <= 1e-3 * scale, (
            f"hvp is symmetric: <v, H u> is {left:.6g}, <u, H v> is {right:.6g}"
        )

    def test_hvp_of_some_parameters(self, case: str) -> None:
        """What a vector leaves out counts as zero."""
        self.need("hvp")
        model, structure = self.prepared(case)
        whole = random_vector(structure)
        some = {name: whole[name] for name in list(whole)[:1]}
        padded = {name: some.get(name, np.zeros_like(array)) for name, array in whole.items()}
        found, wanted = (
            self.backend().hvp(model, structure, self.batches(case), self.loss(), vector)
            for vector in (some, padded)
        )
        assert_near(found, wanted, 1e-5, "parameters that the vector leaves out count as zero")

    # vjp

    def test_vjp_equals_the_reference(self, case: str) -> None:
        """Cotangents come in canonical axes, gradients too."""
        self.need("vjp")
        model, structure = self.built(case)
        twin, described = reference_of(case)
        at = float_params(described)
        x, cotangent = canonical_inputs(case), canonical_targets(case)
        wanted = _REFERENCE.vjp(twin, described, [x], [cotangent], at)
        found = self.backend().vjp(
            model, structure, [x], [cotangent], self.whole(model, structure, described, at)
        )
        assert list(found) == trained(structure), "vjp comes for every trained parameter, in order"
        assert {array.dtype for array in found.values()} == {np.dtype("float64")}, (
            "vjp has the dtype of the parameters it is taken at: float64"
        )
        assert_near(
            found,
            renamed(wanted, described, structure),
            1e-7,
            "vjp is the gradient of <outputs, cotangents> in inference mode, at the given "
            "parameters and buffers and not at the model's own, in float64",
        )

    def test_vjp_conserves_in_float64(self, case: str) -> None:
        """In a chain without biases, <w, dR/dw> is R times the uses of w, for every layer."""
        self.need("vjp")
        model, structure = self.built(case)
        described = reference_of(case)[1]
        if any(site.kind == "layernorm" for site in described.sites):
            raise SkipTest("a layer norm conserves nothing")
        shifts = (".bias", ".running_mean")
        at = {
            name: np.zeros_like(array) if name.endswith(shifts) else np.abs(array)
            for name, array in float_params(described).items()
        }
        x, cotangent = np.abs(canonical_inputs(case)), np.abs(canonical_targets(case))
        native = self.whole(model, structure, described, at)
        found = self.backend().vjp(model, structure, [x], [cotangent], native)
        flows = []
        for index, (site, expected) in enumerate(
            zip(structure.sites, CASES[case].sites, strict=True)
        ):
            name, uses = f"{site.name}.weight", 1 + expected.preds.count(index)
            flows.append(float(np.sum(native[name] * found[name])) / uses)
        assert np.ptp(flows) <= 1e-10 * max(flows), (
            "vjp at float64 parameters is computed in float64 throughout: without biases, "
            f"<weight, gradient> is the same for every layer to ten digits; found {flows}"
        )

    def test_vjp_follows_forward(self, case: str) -> None:
        """The function that vjp differentiates is the one that forward computes."""
        self.need("vjp")
        backend = self.backend()
        model, structure = self.prepared(case)
        x, cotangent = canonical_inputs(case), canonical_targets(case)
        at = backend.read(model, structure)
        slopes = backend.vjp(model, structure, [x], [cotangent], at)
        assert {n: a.dtype for n, a in slopes.items()} == {n: at[n].dtype for n in slopes}, (
            "vjp has the dtype of the parameters it is taken at"
        )
        last = [info.name for info in structure.infos if info.prunable][-1]  # outputs are linear in
        step = random_vector(structure)[last]
        values = []
        for sign in (1, -1):
            backend.write(model, structure, {last: at[last] + sign * step})
            values.append(np.sum(backend.forward(model, structure, [x])[0] * cotangent))
        slope = float(np.sum(step * slopes[last]))
        assert abs((values[0] - values[1]) / 2 - slope) <= 1e-3 * max(1, abs(slope)), (
            f"vjp is the slope of <forward(inputs), cotangents> by {last!r}"
        )

    # activations

    def test_activations_of_the_first_layer(self, case: str) -> None:
        """What the first layer's weights multiply is the model's input."""
        self.need("activations")
        layer, site = CASES[case].layers()[0], CASES[case].sites[0]
        if site.kind not in _KERNELS or 0 in site.preds:
            raise SkipTest("the first layer has no kernel, or meets more than the input")
        model, structure = self.built(case)
        name = f"{structure.sites[0].name}.weight"
        found = self.backend().activations(model, structure, self.batches(case), [name])
        x = np.concatenate([canonical_inputs(case, batch) for batch in range(2)])
        wanted = np.broadcast_to(windows_rms(layer, x), structure.shapes[name])
        assert_near(
            found,
            {name: wanted},
            1e-5,
            "activations are the root of the mean, over examples and positions, of the squared "
            "input that a weight multiplies, padding as zeros, in the weight's shape",
        )

    def test_activations_equal_the_reference(self, case: str) -> None:
        """Activations are canonical, and independent of how examples are batched."""
        self.need("activations")
        model, structure = self.prepared(case)
        names = kernels(structure)
        twin, described = prepared_reference(case)
        wanted = _REFERENCE.activations(twin, described, canonical(case), kernels(described))
        found = self.backend().activations(model, structure, self.batches(case), names)
        assert_near(
            found,
            renamed(wanted, described, structure),
            1e-4,
            "activations, in inference mode, equal the reference's; a layer that is called "
            "twice counts each call",
        )
        whole, parts = (
            self.backend().activations(model, structure, self.native(case, *cuts), names)
            for cuts in ([(0, 4)], [(0, 1), (1, 4)])
        )
        assert_near(parts, whole, 1e-5, "activations do not depend on how examples are batched")

    def test_activations_are_of_kernels(self, case: str) -> None:
        """Other parameters multiply no input, or none that is told."""
        self.need("activations")
        model, structure = self.built(case)
        for name in set(trained(structure)) - set(kernels(structure)):
            kind, message = structure.by_name[name][0].kind, ""
            try:
                self.backend().activations(model, structure, self.batches(case), [name])
            except CapabilityError as error:
                message = str(error)
            assert message, f"activations of {name!r}, which is no kernel, are a CapabilityError"
            assert name in message, "the error of activations names the parameter"
            assert kind in message, "the error of activations names the kind of layer"

    # all of them

    def test_derivatives_change_nothing(self, case: str) -> None:
        """Parameters, buffers and modes stay, and nothing adds up."""
        backend = self.backend()
        model, structure = self.built(case)
        before, mode = backend.read(model, structure), backend.get_mode(model)
        first, second = self.derived(model, structure, case), self.derived(model, structure, case)
        for method, found in first.items():
            promise = f"{method}: nothing is left behind by the call before"
            assert_near(second[method], found, 1e-5, promise)
        after = backend.read(model, structure)
        assert_same(after, before, f"{list(first)} leave parameters and buffers")
        assert backend.get_mode(model) == mode, f"{list(first)} leave the training mode"

    def test_derivatives_of_a_held_model(self, case: str) -> None:
        """A hold hides nothing: pruned weights have gradients too."""
        backend = self.backend()
        held, structure = self.built(case)
        free, _ = self.built(case)
        masks = some_masks(structure)
        self.hold(held, structure, masks)
        backend.write(free, structure, backend.read(held, structure))
        found, wanted = (self.derived(model, structure, case) for model in (held, free))
        for method in wanted:
            promise = f"{method} of a held model is that of a free one with the same weights"
            assert_near(found[method], wanted[method], 1e-5, promise)
        self.train(held, case, 2)
        assert_pruned(backend.read(held, structure), masks, f"after {list(found)}, a hold holds")

    # For these tests

    def prepared(self, case: str) -> tuple[Any, Structure]:
        """Return a model with the made-up parameters of `prepared_reference`, and its structure."""
        model, structure = self.built(case)
        described = reference_of(case)[1]
        params = renamed(made_up_params(described), described, structure)
        self.backend().write(model, structure, params)
        return model, structure

    def batches(self, case: str) -> Batches:
        """Return two native batches."""
        return [(self.example(case, i), self.targets(case, i)) for i in range(2)]

    def native(self, case: str, *cuts: tuple[int, int]) -> Batches:
        """Return batches of the examples ``[start:end]`` of the first one."""
        return [
            (self.to_native(case, x[start:end]), self.to_native(case, y[start:end]))
            for x, y in canonical(case)[:1]
            for start, end in cuts
        ]

    def whole(
        self, model: Any, structure: Structure, described: Structure, at: Params
    ) -> dict[str, Array]:
        """Return every parameter and buffer of ``model``, those in ``at`` of the reference so."""
        return self.backend().read(model, structure) | renamed(at, described, structure)

    def derived(self, model: Any, structure: Structure, case: str) -> dict[str, Params]:
        """Return what every method that the backend has makes of a model: ``{method: params}``."""
        backend, batches, loss = self.backend(), self.batches(case), self.loss()
        found: dict[str, Params] = {}
        if "gradients" in backend.capabilities:
            found["gradients"] = backend.gradients(model, structure, batches, loss)
            few = self.native(case, (0, 2))
            found["fisher"] = backend.fisher(model, structure, few, loss)
        if "hvp" in backend.capabilities:
            vector = random_vector(structure)
            found["hvp"] = backend.hvp(model, structure, batches, loss, vector)
        if "vjp" in backend.capabilities:
            at = {
                name: array + 0.5 if array.dtype.kind == "f" else array
                for name, array in backend.read(model, structure).items()
            }
            x, cotangent = canonical_inputs(case), canonical_targets(case)
            found["vjp"] = backend.vjp(model, structure, [x], [cotangent], at)
        if "activations" in backend.capabilities:
            names = kernels(structure)
            found["activations"] = backend.activations(model, structure, batches, names)
        return found


def trained(structure: Structure) -> list[str]:
    """Return the names of trained parameters, in order."""
    return [info.name for info in structure.infos]


def kernels(structure: Structure) -> list[str]:
    """Return the names of weights that have activations, in order."""
    return [info.name for info in structure.infos if info.kind in _KERNELS and info.prunable]


def prepared_reference(case: str) -> tuple[NumpyModel, Structure]:
    """Return the reference model of ``case`` with made-up parameters, and its structure."""
    model, described = reference_of(case)
    _REFERENCE.write(model, described, made_up_params(described))
    return model, described


def canonical(case: str) -> Batches:
    """Return two canonical batches."""
    return [(canonical_inputs(case, i), canonical_targets(case, i)) for i in range(2)]


def random_vector(structure: Structure, seed: int = 0) -> dict[str, Array]:
    """Return float32 numbers for every trained parameter."""
    rng = np.random.default_rng([seed, 3])
    return {
        info.name: rng.standard_normal(info.shape).astype(np.float32) for info in structure.infos
    }


def float_params(structure: Structure) -> dict[str, Array]:
    """Return made-up parameters and buffers that float32 cannot tell exactly."""
    rng = np.random.default_rng(4)
    return {
        name: array * rng.uniform(1, 1.1, array.shape)
        for name, array in made_up_params(structure).items()
    }


def inner(a: Params, b: Params) -> float:
    """Return the inner product of two vectors of parameters."""
    return float(sum(np.sum(a[name].astype(np.float64) * b[name]) for name in a))


def windows_rms(layer: Layer, x: Array) -> Array:
    """Return the root mean square of what each weight of a first layer sees, window by window."""
    if not isinstance(layer, Conv):  # one number a feature: all positions see all of it
        axis = layer.feature_axis % x.ndim
        rms: Array = np.sqrt(np.mean(x**2, axis=tuple(set(range(x.ndim)) - {axis})))
        ends = len(layer.kernel) + 1 if isinstance(layer, ConvTranspose) else 0
        return rms.reshape(-1, *(1,) * ends)
    space = tuple(range(2, x.ndim))
    padded = np.pad(x, [(0, 0), (0, 0), *[(layer.padding, layer.padding)] * len(space)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, layer.kernel, space)
    windows = windows[:, :, *[slice(None, None, layer.stride)] * len(space)]
    rms = np.sqrt(np.mean(windows**2, axis=(0, *space)))
    grouped = rms.reshape(layer.groups, -1, *layer.kernel)
    return np.repeat(grouped, layer.outputs // layer.groups, axis=0)
