"""Derivatives and activations of Flax models where the conformance suite does not look."""

import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp  # noqa: E402

from ltcore.errors import CapabilityError, InvalidValueError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

X = np.random.default_rng(0).standard_normal((16, 5)).astype("float32")
Y = np.random.default_rng(1).standard_normal((16, 3)).astype("float32")
BACKEND = detect(nnx.Sequential())


class Net(nnx.Module):
    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, 8, rngs=rngs, **options)
        self.last = nnx.Linear(8, 3, rngs=rngs, **options)

    def between(self, x):
        return x

    def __call__(self, x):
        return self.last(self.between(nnx.relu(self.first(x))))


def loss_of(outputs, targets):
    return ((outputs.astype(jnp.float32) - targets) ** 2).mean()


def small(outputs, targets):
    return 1e-3 * loss_of(outputs, targets)


def wide_twin(model):
    """The same model with float32 weights."""
    twin = Net()
    BACKEND.write(twin, BACKEND.describe(twin), BACKEND.read(model, BACKEND.describe(model)))
    return twin


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_are_added_up_as_float32(dtype):
    model = Net(param_dtype=jnp.dtype(dtype))
    twin, structure = wide_twin(model), BACKEND.describe(model)
    vector = {"first.weight": np.ones((8, 5), "float32")}
    batches = [(X, Y)] * 300
    for name, given in (("gradients", ()), ("fisher", ()), ("hvp", (vector,))):
        method = getattr(BACKEND, name)
        short = method(model, structure, batches, small, *given)
        wide = method(twin, BACKEND.describe(twin), batches[:1], small, *given)
        for key, expected in wide.items():
            assert short[key].dtype == np.float32
            error = abs(short[key] - expected).max() / abs(expected).max()
            assert error < 0.03, (name, key, error)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ({"nope": np.ones(3, "float32")}, r"\['nope'\], which are no trained parameters"),
        ({"first.weight": np.ones((5, 8), "float32")}, r"\(8, 5\) in the model, got \(5, 8\)"),
        ({"first.bias": np.ones(1, "float32")}, r"\(8,\) in the model, got \(1,\)"),
    ],
)
def test_a_vector_that_does_not_fit(vector, message):
    model = Net()
    with pytest.raises(InvalidValueError, match=message):
        BACKEND.hvp(model, BACKEND.describe(model), [(X, Y)], loss_of, vector)


def test_arguments_of_vjp_that_do_not_fit():
    model = Net()
    structure = BACKEND.describe(model, X)
    at = BACKEND.read(model, structure)

    def check(message, cotangents=(Y,), **changed):
        params = {**at, **{name.replace("__", "."): value for name, value in changed.items()}}
        params = {name: value for name, value in params.items() if value is not None}
        with pytest.raises(InvalidValueError, match=message):
            BACKEND.vjp(model, structure, [X], cotangents, params)

    check(r"lacks \['first.bias'\] and has \[\] too many", first__bias=None)
    check(r"lacks \[\] and has \['other'\] too many", other=np.ones(2, "float32"))
    check(r"'first.bias' has shape \(8,\)", first__bias=np.ones(1, "float32"))
    check(r"'first.weight' has shape \(8, 5\)", first__weight=np.ones((5, 8), "float32"))
    check(r"outputs have \[\(16, 3\)\]", cotangents=[Y[:1]])
    check(r"outputs have \[\(16, 3\)\]", cotangents=[Y, Y])
    check(r"outputs have \[\(16, 3\)\]", cotangents=[])


class Rounding(Net):
    def between(self, x):
        return x.astype(jnp.float32)


class Compiled(Net):
    def between(self, x):
        return jax.jit(lambda y: y.astype(jnp.bfloat16).astype(y.dtype))(x)


class Constant(Net):
    def between(self, x):
        return x * jnp.linspace(1.0, 2.0, 8).astype(jnp.float32)  # what is rounded is no input


@pytest.mark.parametrize("cls", [Rounding, Compiled])
def test_a_cast_to_shorter_floats_is_refused_in_float64(cls):
    model = cls()
    structure = BACKEND.describe(model, X)
    at = BACKEND.read(model, structure)
    BACKEND.vjp(model, structure, [X], [Y], at)
    with pytest.raises(CapabilityError, match=r"makes b?float\d\d of it inside"):
        BACKEND.vjp(model, structure, [X], [Y], {n: v.astype("float64") for n, v in at.items()})


@pytest.mark.parametrize("cls", [Net, Constant])
def test_float64_stays_float64(cls):
    model = cls()
    structure = BACKEND.describe(model, X)
    at = {n: v.astype("float64") for n, v in BACKEND.read(model, structure).items()}
    found = BACKEND.vjp(model, structure, [X], [Y], at)["last.weight"]
    inner = np.maximum(X.astype("float64") @ at["first.weight"].T + at["first.bias"], 0)
    inner = inner * np.linspace(1, 2, 8).astype("float32") if cls is Constant else inner
    np.testing.assert_allclose(found, Y.astype("float64").T @ inner, rtol=1e-6)


def test_attention_is_redrawn_with_the_variance_that_flax_gives_it():
    model = nnx.MultiHeadAttention(8, 256, decode=False, rngs=nnx.Rngs(0))
    structure = BACKEND.describe(model)
    old = BACKEND.read(model, structure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = BACKEND.redraw(model, structure, 0)
    for name, value in old.items():
        assert new[name].shape == value.shape
        np.testing.assert_allclose(new[name].std(), value.std(), rtol=0.03, err_msg=name)


class Tied(nnx.Module):
    def __init__(self):
        self.a, self.b = (nnx.Linear(5, 5, rngs=nnx.Rngs(0)) for _ in range(2))
        self.b.kernel = self.a.kernel

    def inner(self, x):
        return 10 * nnx.relu(self.a(inputs=x))

    def __call__(self, x):
        return self.b(self.inner(x))


def test_activations_of_a_tied_kernel_are_those_of_all_its_layers():
    model = Tied()
    found = BACKEND.activations(model, BACKEND.describe(model), [(X, None)], ["a.weight"])
    both = np.concatenate([X, model.inner(X)])
    expected = np.sqrt((both**2).mean(0))
    np.testing.assert_allclose(found["a.weight"], np.tile(expected, (5, 1)), rtol=1e-5)


class Odd(nnx.Module):
    """Multiplies by a layer's kernel on its own account."""

    def __init__(self):
        self.a = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
        self.own = self.a.kernel

    def __call__(self, x):
        return self.a(x) @ self.own[...]


def test_activations_of_a_kernel_that_serves_elsewhere_are_refused():
    model = Odd()
    structure = BACKEND.describe(model)
    (name,) = (info.name for info in structure.infos if len(info.shape) == 2)
    with pytest.raises(CapabilityError, match=name):
        BACKEND.activations(model, structure, [(X, None)], [name])


class Vmapped(Net):
    def __call__(self, x):
        return jax.vmap(super().__call__)(x)


class Remat(Net):
    def __call__(self, x):
        return nnx.remat(Net.__call__)(self, x)


@pytest.mark.parametrize("cls", [Vmapped, Remat])
def test_activations_where_inputs_have_no_values_are_refused(cls):
    model = cls()
    with pytest.raises(CapabilityError, match=r"Linear is called inside jax\.vmap"):
        BACKEND.activations(model, BACKEND.describe(model), [(X, None)], ["first.weight"])
