"""The reference backend keeps every promise, and the suite notices when one is broken."""

from dataclasses import replace

import numpy as np
import pytest

from ltcore.arrays import own
from ltcore.errors import ModelError, ModelNotBuiltError
from ltcore.testing import (
    CASES,
    BackendConformance,
    Conv,
    ConvTranspose,
    Linear,
    NumpyModel,
    ReferenceBackend,
    Relu,
    Sgd,
    canonical_inputs,
    check_backend,
    differentiate,
    fit,
    mean_squared_error,
)
from ltcore.testing.reference_hold import NumpyHold, NumpyWatch


class NumpyHooks(BackendConformance):
    optimizers = ("sgd", "clipped")

    def backend(self):
        return ReferenceBackend()

    def build(self, case, seed=0):
        return NumpyModel(CASES[case].layers(), seed)

    def trainer(self, model, case, optimizer="sgd"):
        made = {
            "sgd": lambda: Sgd(model, lr=0.1, momentum=0.9, weight_decay=0.01),
            "clipped": lambda: Sgd(model, lr=0.1, clip_norm=0.1),
        }[optimizer]()
        x, y = self.example(case), self.targets(case)
        return lambda updates: fit(model, made, x, y, updates)

    def loss(self):
        return mean_squared_error


class TestReferenceBackend(NumpyHooks):
    pass


# The suite itself: each of these backends breaks one promise.


class AliasingRead(ReferenceBackend):
    def read(self, model, structure, names=None):
        live = model.arrays()
        return {name: live[name] for name in (structure.by_name if names is None else names)}


class AliasingWrite(ReferenceBackend):
    def write(self, model, structure, params):
        layers = dict(model.named_layers())
        for name, array in params.items():
            site, role = structure.by_name[name]
            setattr(layers[site.name], role.name, array)


class HoldThatMasksGradientsOnly(ReferenceBackend):
    def hold(self, model, structure, masks):
        for optimizer in list(model.optimizers):  # which would clear their momentum
            model.optimizers.discard(optimizer)
        made = NumpyHold(model, structure, masks)
        model.after_update.remove(made.enforce)
        return made


class HoldThatMasksWeightsOnly(ReferenceBackend):
    def hold(self, model, structure, masks):
        made = NumpyHold(model, structure, masks)
        model.before_update.remove(made._mask_gradients)
        return made


class HoldThatMultiplies(ReferenceBackend):
    def hold(self, model, structure, masks):
        class Multiplying(NumpyHold):
            def enforce(self):
                live = self._model().arrays() if self._model() else {}
                for name, weight in live.items():
                    if name in self._pruned:
                        weight *= ~self._pruned[name]

        return Multiplying(model, structure, masks)


class HoldThatWaits(ReferenceBackend):
    def hold(self, model, structure, masks):
        live = {name: own(array) for name, array in model.arrays().items()}
        made = NumpyHold(model, structure, masks)
        for name, array in model.arrays().items():
            array[...] = live[name]
        return made


class HoldThatFreezes(ReferenceBackend):
    def hold(self, model, structure, masks):
        made = super().hold(model, structure, masks)
        frozen = {name: own(array) for name, array in model.arrays().items()}

        def restore():
            for name, array in model.arrays().items():
                array[...] = frozen[name]

        model.after_update.append(restore)
        return made


class HoldThatStays(ReferenceBackend):
    def hold(self, model, structure, masks):
        class Sticky(NumpyHold):
            def release(self):
                pass

        return Sticky(model, structure, masks)


class HoldThatIgnoresUpdates(ReferenceBackend):
    def hold(self, model, structure, masks):
        class Deaf(NumpyHold):
            made = False

            def update(self, masks):
                if not self.made:
                    super().update(masks)
                self.made = True

        return Deaf(model, structure, masks)


class HoldThatKeepsItsModel(ReferenceBackend):
    def hold(self, model, structure, masks):
        made = NumpyHold(model, structure, masks)
        made.model = model
        return made


class HoldThatTravels(ReferenceBackend):
    held = []

    def hold(self, model, structure, masks):
        made = NumpyHold(model, structure, masks)
        self.held.append(made)
        for layer in model.layers:
            layer.hold = made._pruned
        return made

    def describe(self, model, example=None):
        structure = super().describe(model, example)
        if not model.before_update and any(hasattr(layer, "hold") for layer in model.layers):
            pruned = next(layer.hold for layer in model.layers if hasattr(layer, "hold"))

            def enforce():
                for name, gone in pruned.items():
                    model.arrays()[name][gone] = 0.0

            model.after_update.append(enforce)
        return structure


class WatchOffByOne(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        class Late(NumpyWatch):
            def _count(self):
                self._wanted = frozenset(step + 1 for step in steps)
                super()._count()
                self.snapshots = {s - 1: p for s, p in self.snapshots.items()}

        return Late(model, lambda live: self.read(live, structure), steps, callback)


class WatchThatCountsFromZeroTwice(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        made = super().watch(model, structure, steps, callback)
        made.steps = 1
        return made


class WatchThatAliases(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        return NumpyWatch(model, lambda live: dict(live.arrays()), steps, callback)


class WatchWithoutBuffers(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        trained = [name for name, _, role in structure.items() if not role.state]
        return NumpyWatch(model, lambda live: self.read(live, structure, trained), steps, callback)


class WatchThatNeverStops(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        class Endless(NumpyWatch):
            def stop(self):
                pass

        return Endless(model, lambda live: self.read(live, structure), steps, callback)


class WatchBeforeHold(HoldThatMasksWeightsOnly):
    def hold(self, model, structure, masks):
        made = super().hold(model, structure, masks)
        model.after_update.append(model.after_update.pop(0))
        return made


class StaleOptimizer(ReferenceBackend):
    def fresh_optimizer(self, model, step):
        pass


class UnseededRedraw(ReferenceBackend):
    def redraw(self, model, structure, seed):
        return super().redraw(model, structure, int(np.random.default_rng().integers(2**31)))


class RedrawInPlace(ReferenceBackend):
    def redraw(self, model, structure, seed):
        model.initialize(seed)
        return self.read(model, structure)


class RedrawNormal(ReferenceBackend):
    def redraw(self, model, structure, seed):
        rng = np.random.default_rng(seed)
        shapes = structure.shapes.items()
        return {n: rng.standard_normal(s).astype(np.float32) * 9 for n, s in shapes}


class CountedNames(ReferenceBackend):
    count = 0

    def describe(self, model, example=None):
        structure = super().describe(model, example)
        CountedNames.count += 1
        sites = [replace(s, name=f"{s.name}_{self.count}", preds=()) for s in structure.sites]
        return replace(structure, sites=tuple(sites))


class TransposedForward(ReferenceBackend):
    """Reads and writes square-ish kernels flipped in space: consistent, and wrong."""

    @staticmethod
    def flipped(arrays):
        return {n: np.ascontiguousarray(a[:, :, ::-1]) if a.ndim > 2 else a
                for n, a in arrays.items()}  # fmt: skip

    def read(self, model, structure, names=None):
        return self.flipped(super().read(model, structure, names))

    def write(self, model, structure, params):
        super().write(model, structure, self.flipped(params))


class ForwardInTrainingMode(ReferenceBackend):
    def forward(self, model, structure, inputs):
        return (model(inputs[0]),)


class SummedGradients(ReferenceBackend):
    def gradients(self, model, structure, batches, loss):
        batches = list(batches)
        mean = super().gradients(model, structure, batches, loss)
        return {name: array * len(batches) for name, array in mean.items()}


class GradientsInTrainingMode(ReferenceBackend):
    def gradients(self, model, structure, batches, loss):
        found = [
            differentiate(model, lambda twin, x=x, y=y: float(loss(twin(x), y))) for x, y in batches
        ]
        return {
            name: np.mean([one[role.native] for one in found], axis=0).astype(np.float32)
            for name, _, role in structure.items()
            if not role.state
        }


class GradientsOfKeptWeights(ReferenceBackend):
    def gradients(self, model, structure, batches, loss):
        found = super().gradients(model, structure, batches, loss)
        if model.before_update:  # a hold
            for name, array in self.read(model, structure, found).items():
                found[name][array == 0] = 0
        return found


class FisherOfBatches(ReferenceBackend):
    def fisher(self, model, structure, batches, loss):
        found = [super(FisherOfBatches, self).gradients(model, structure, [b], loss)
                 for b in batches]  # fmt: skip
        return {name: np.mean([one[name] ** 2 for one in found], axis=0) for name in found[0]}


class FisherAveragedByBatches(ReferenceBackend):
    def fisher(self, model, structure, batches, loss):
        found = [super(FisherAveragedByBatches, self).fisher(model, structure, [b], loss)
                 for b in batches]  # fmt: skip
        return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}


class HvpOfGradientNorm(ReferenceBackend):
    """Of another vector, as GraSP without its stopped gradient would have it."""

    def hvp(self, model, structure, batches, loss, vector):
        gradient = self.gradients(model, structure, batches, loss)
        whole = {name: vector.get(name, 0) + array for name, array in gradient.items()}
        return super().hvp(model, structure, batches, loss, whole)


class HvpOfSomeOnly(ReferenceBackend):
    def hvp(self, model, structure, batches, loss, vector):
        found = super().hvp(model, structure, batches, loss, vector)
        return {name: array if name in vector else 0 * array for name, array in found.items()}


class VjpInFloat32(ReferenceBackend):
    def vjp(self, model, structure, inputs, cotangents, at):
        found = super().vjp(model, structure, inputs, cotangents, at)
        return {name: array.astype(np.float32).astype(np.float64) for name, array in found.items()}


class VjpAtTheModelsOwn(ReferenceBackend):
    def vjp(self, model, structure, inputs, cotangents, at):
        own = {name: array.astype(at[name].dtype) for name, array in
               self.read(model, structure).items()}  # fmt: skip
        return super().vjp(model, structure, inputs, cotangents, own)


class VjpThatWrites(ReferenceBackend):
    def vjp(self, model, structure, inputs, cotangents, at):
        self.write(model, structure, at)
        return super().vjp(model, structure, inputs, cotangents, at)


class VjpAlwaysInFloat64(ReferenceBackend):
    def vjp(self, model, structure, inputs, cotangents, at):
        at = {name: array.astype(np.float64) for name, array in at.items()}
        return super().vjp(model, structure, inputs, cotangents, at)


class ActivationsAveragedByBatches(ReferenceBackend):
    def activations(self, model, structure, batches, names):
        names = list(names)
        found = [super(ActivationsAveragedByBatches, self).activations(
            model, structure, [batch], names) for batch in batches]  # fmt: skip
        return {name: np.mean([one[name] for one in found], axis=0) for name in names}


class ActivationsOfChannels(ReferenceBackend):
    """Every position of a kernel alike, as if there were neither padding nor borders."""

    def activations(self, model, structure, batches, names):
        found = super().activations(model, structure, batches, names)
        return {
            name: np.broadcast_to(array.mean(tuple(range(2, array.ndim)), keepdims=True),
                                  array.shape)
            for name, array in found.items()
        }  # fmt: skip


class ActivationsOfAnything(ReferenceBackend):
    def activations(self, model, structure, batches, names):
        kernels = [name for name in names if name.endswith("weight")]
        return super().activations(model, structure, batches, kernels)


class CallbackThatSwallows(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        def careful(step):
            try:
                callback(step)
            except Exception:  # noqa: BLE001
                return

        return super().watch(model, structure, steps, callback and careful)


class CallbackTooEarly(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        made = super().watch(model, structure, steps)
        if callback:
            model.before_update.append(lambda gradients: callback(made.steps + 1))
        return made


class CallbackForEver(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        made = super().watch(model, structure, steps)
        if callback:
            model.after_update.append(lambda: callback(made.steps))
        return made


class CallbackBeforeSnapshot(ReferenceBackend):
    def watch(self, model, structure, steps, callback=None):
        class Eager(NumpyWatch):
            def _count(self):
                callback and callback(self.steps + 1)
                super()._count()

        return Eager(model, lambda live: self.read(live, structure), steps)


class ForgottenFlatten(ReferenceBackend):
    def describe(self, model, example=None):
        structure = super().describe(model, example)
        sites = tuple(replace(site, in_group=None) for site in structure.sites)
        return replace(structure, sites=sites)


BROKEN = [
    (AliasingRead, "linear", "test_read_is_not_changed_by_training"),
    (AliasingRead, "linear", "test_read_is_owned"),
    (AliasingWrite, "linear", "test_write_copies"),
    (HoldThatMasksGradientsOnly, "linear", "test_hold_with_an_optimizer_under_way"),
    (HoldThatMasksWeightsOnly, "linear", "test_pruned_gradients_count_nowhere"),
    (HoldThatMultiplies, "linear", "test_hold_zeroes_at_once"),
    (HoldThatMultiplies, "linear", "test_enforce_zeroes_what_was_written"),
    (HoldThatWaits, "linear", "test_hold_zeroes_at_once"),
    (HoldThatFreezes, "linear", "test_hold_keeps_zeros_in_training"),
    (HoldThatFreezes, "linear", "test_hold_that_keeps_everything_changes_no_training"),
    (HoldThatStays, "linear", "test_release_frees_the_weights"),
    (HoldThatStays, "linear", "test_hold_after_release"),
    (HoldThatIgnoresUpdates, "linear", "test_update_holds_other_masks"),
    (HoldThatKeepsItsModel, "linear", "test_hold_dies_with_the_model"),
    (HoldThatTravels, "linear", "test_copy_of_a_held_model_is_free"),
    (HoldThatTravels, "linear", "test_pickle_of_a_held_model_is_free"),
    (WatchOffByOne, "linear", "test_watch_takes_snapshots"),
    (WatchThatCountsFromZeroTwice, "linear", "test_watch_counts_updates"),
    (WatchThatAliases, "linear", "test_watch_takes_snapshots"),
    (WatchThatAliases, "linear", "test_watch_stops"),
    (WatchWithoutBuffers, "batchnorm", "test_watch_takes_snapshots"),
    (WatchThatNeverStops, "linear", "test_watch_stops"),
    (WatchBeforeHold, "linear", "test_watch_sees_held_weights"),
    (StaleOptimizer, "linear", "test_fresh_optimizer"),
    (UnseededRedraw, "linear", "test_redraw_is_seeded"),
    (RedrawInPlace, "linear", "test_redraw_is_seeded"),
    (RedrawNormal, "linear", "test_redraw_is_the_layers_own"),
    (CountedNames, "linear", "test_describe_is_stable"),
    (TransposedForward, "conv2d", "test_forward_equals_the_reference"),
    (TransposedForward, "conv_transpose", "test_forward_equals_the_reference"),
    (ForwardInTrainingMode, "batchnorm", "test_forward_equals_the_reference"),
    (ForwardInTrainingMode, "batchnorm", "test_forward_changes_nothing"),
    (SummedGradients, "linear", "test_gradients_equal_the_reference"),
    (GradientsInTrainingMode, "batchnorm", "test_gradients_equal_the_reference"),
    (GradientsOfKeptWeights, "linear", "test_derivatives_of_a_held_model"),
    (FisherOfBatches, "linear", "test_fisher_is_the_mean_of_squared_gradients"),
    (FisherAveragedByBatches, "linear", "test_fisher_is_the_mean_of_squared_gradients"),
    (HvpOfGradientNorm, "linear", "test_hvp_equals_the_reference"),
    (HvpOfGradientNorm, "linear", "test_hvp_is_linear_and_symmetric"),
    (HvpOfSomeOnly, "linear", "test_hvp_of_some_parameters"),
    (VjpInFloat32, "linear", "test_vjp_conserves_in_float64"),
    (VjpAtTheModelsOwn, "linear", "test_vjp_equals_the_reference"),
    (VjpAtTheModelsOwn, "batchnorm", "test_vjp_equals_the_reference"),
    (VjpThatWrites, "linear", "test_derivatives_change_nothing"),
    (VjpAlwaysInFloat64, "linear", "test_vjp_follows_forward"),
    (ActivationsAveragedByBatches, "linear", "test_activations_equal_the_reference"),
    (ActivationsOfChannels, "conv1d", "test_activations_of_the_first_layer"),
    (ActivationsOfAnything, "linear", "test_activations_are_of_kernels"),
    (CallbackThatSwallows, "linear", "test_callback_errors_reach_the_loop"),
    (CallbackTooEarly, "linear", "test_callback_hears_of_updates"),
    (CallbackForEver, "linear", "test_callback_ends"),
    (CallbackBeforeSnapshot, "linear", "test_callback_changes_the_model"),
    (ForgottenFlatten, "flatten", "test_describe_traces_the_graph"),
]


@pytest.mark.parametrize(
    ("broken", "case", "test"), BROKEN, ids=[f"{b.__name__}-{t}" for b, _, t in BROKEN]
)
def test_suite_notices(broken, case, test):
    class Suite(NumpyHooks):
        def backend(self):
            return broken()

    failures = check_backend(Suite, only=lambda t, c: (t, c) == (test, case))
    assert [(f.test, f.case) for f in failures] == [(test, case)]
    assert "Error:" not in failures[0].message  # a promise, not an accident


def test_suite_passes_without_pytest():
    few = {"linear", "batchnorm", ""}
    assert check_backend(NumpyHooks, only=lambda test, case: case in few) == []


def test_suite_reports_errors_as_failures():
    class Suite(NumpyHooks):
        def build(self, case, seed=0):
            raise OSError("no such model")

    failures = check_backend(Suite, only=lambda test, case: case == "linear")
    assert {f.message for f in failures} == {"OSError: no such model"}


def test_unsupported_cases_are_left_out():
    class Suite(NumpyHooks):
        unsupported = frozenset(CASES) - {"linear"}

        def build(self, case, seed=0):
            assert case == "linear"
            return super().build(case, seed)

    assert check_backend(Suite, only=lambda test, case: test.startswith("test_describe")) == []


@pytest.mark.parametrize("case", CASES)
def test_case_table_has_the_shapes_it_says(case):
    model = NumpyModel(CASES[case].layers())
    assert model(canonical_inputs(case)).shape == CASES[case].outputs
    assert sum(a.size for a in model.arrays(trained_only=True).values()) < 300


def test_unbuilt_model_is_refused():
    with pytest.raises(ModelNotBuiltError, match="initialize"):
        ReferenceBackend().describe(NumpyModel([Linear(3, 2)], seed=None))


def test_example_of_a_wrong_shape_is_refused():
    model = NumpyModel([Linear(3, 2), Relu()])
    with pytest.raises(ModelError, match=r"inputs=3.*\(2, 5\)"):
        ReferenceBackend().describe(model, np.zeros((2, 5), np.float32))


def test_conv_by_hand():
    conv = Conv(1, 1, (2,), stride=2, padding=1)
    conv.weight, conv.bias = np.array([[[1.0, 10.0]]]), np.array([0.5])
    # 0 1 | 2 3 | (4 0 is complete too: padded length 6)
    found = conv(np.array([[[1.0, 2.0, 3.0, 4.0]]]))
    assert found.tolist() == [[[10.5, 32.5, 4.5]]]


def test_differences_equal_the_derivative():
    model = NumpyModel([Linear(2, 1)])
    x = np.array([[2.0, 3.0]])
    gradients = differentiate(model, lambda twin: float(twin(x).sum()))
    np.testing.assert_allclose(gradients["layers.0.weight"], [[2, 3]], rtol=1e-6)
    np.testing.assert_allclose(gradients["layers.0.bias"], [1], rtol=1e-6)


def test_hvp_of_a_quadratic():
    """Of a linear model and a mean square, the Hessian is known: 2 X^T X / elements."""
    model = NumpyModel([Linear(3, 2)])
    structure = ReferenceBackend().describe(model)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    vector = rng.standard_normal((2, 3))
    name = "layers.0.weight"
    found = ReferenceBackend().hvp(model, structure, [(x, y)], mean_squared_error, {name: vector})
    np.testing.assert_allclose(found[name], 2 * vector @ (x.T @ x) / y.size, rtol=1e-4, atol=1e-4)
    wanted = 2 * vector @ x.sum(0) / y.size
    np.testing.assert_allclose(found["layers.0.bias"], wanted, rtol=1e-4, atol=1e-4)


def test_activations_of_a_cropped_transpose_count_all_inputs():
    layer = ConvTranspose(2, 3, (3,), padding=1)
    model = NumpyModel([layer])
    structure = ReferenceBackend().describe(model)
    x = np.random.default_rng(0).standard_normal((4, 2, 5)).astype(np.float32)
    found = ReferenceBackend().activations(model, structure, [(x, None)], ["layers.0.weight"])
    rms = np.sqrt((x**2).mean((0, 2)))
    wanted = np.broadcast_to(rms.reshape(2, 1, 1), (2, 3, 3))
    np.testing.assert_allclose(found["layers.0.weight"], wanted, rtol=1e-5)
    assert layer.padding == 1
