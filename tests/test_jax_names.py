"""What the JAX backend makes of models: sites, names, graphs, and what it refuses to guess."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

R = nnx.Rngs(0)
BACKEND = detect(nnx.Sequential())
X = np.ones((2, 6), "float32")


def reason(model, example=X):
    return BACKEND.describe(model, example).why_not_portable()


class Scaled(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


def stacked():
    @nnx.vmap(in_axes=0)
    def make(key):
        return nnx.Linear(6, 6, rngs=nnx.Rngs(key))

    return make(jax.random.split(jax.random.key(0), 3))


class Flat(nnx.Module):
    """Attributes out of alphabetical order, one layer in two places, a parameter of its own."""

    def __init__(self):
        self.second = nnx.Linear(6, 6, rngs=R)
        self.first = nnx.Linear(6, 6, rngs=R)
        self.again = self.second
        self.dropout = nnx.Dropout(0.5, rngs=R)

    def __call__(self, x):
        return self.second(self.dropout(self.first(self.again(x))))


class Tied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(7, 6, rngs=R)
        self.inner = nnx.Linear(6, 6, rngs=R)

    def __call__(self, tokens):
        return self.embed.attend(self.inner(self.embed(tokens)))


def test_names_do_not_depend_on_how_a_model_was_made():
    model = Flat()
    found = BACKEND.describe(model, X)
    assert list(found.shapes) == ["again.weight", "again.bias", "first.weight", "first.bias"]
    assert [site.preds for site in found.sites] == [("first",), ("again",)]
    for twin in (nnx.clone(model), nnx.merge(*nnx.split(model))):
        assert BACKEND.describe(twin, X) == found
    lt.hold(model, lt.Masks({"again.weight": np.eye(6, dtype=bool)}))
    assert BACKEND.describe(model, X) == found


def test_an_embedding_that_is_also_the_output():
    found = BACKEND.describe(Tied(), np.ones((2, 3), "int32"))
    assert not found.why_not_portable()
    assert [(site.preds, site.is_output) for site in found.sites] == [
        (("inner",), True),
        (("embed",), False),
    ]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: Scaled(6, 4, rngs=R), "Scaled is a Linear with a __call__ of its own"),
        (stacked, "several layers are stacked in one"),
        (lambda: nnx.Conv(6, 4, (3,), padding="CIRCULAR", rngs=R), "'CIRCULAR'"),
        (lambda: nnx.LayerNorm(6, reduction_axes=(-2, -1), rngs=R), "along axes"),
        (lambda: nnx.Einsum("ab,bc->ac", (6, 4), rngs=R), "no portable layout"),
        (lambda: nnx.Sequential(nnx.Linear(6, 4, rngs=R), lambda x: x + float(x[0, 0])),
         "a trace of the model failed"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(model, told):
    model = model()
    assert told in reason(model) + str(BACKEND.describe(model).sites[0].attrs)
    assert reason(model)
    structure = BACKEND.describe(model)
    params = BACKEND.read(model, structure)
    BACKEND.write(model, structure, {name: array + 1 for name, array in params.items()})
    for name, array in BACKEND.read(model, structure).items():
        np.testing.assert_array_equal(array, params[name] + 1)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: jnp.sort(x.reshape(len(x), -1)),
        lambda x: x.reshape(len(x), -1)[:, ::-1],
        lambda x: jax.lax.scan(lambda c, y: (c, 2 * y), 0, x.reshape(len(x), -1))[1],
    ],
    ids=["sort", "reversed", "scan"],
)
def test_an_order_that_is_lost_is_not_proved(between):
    conv = nnx.Conv(2, 3, (2, 2), padding="VALID", rngs=R)
    model = nnx.Sequential(conv, between, nnx.Linear(24, 2, rngs=R))
    example = np.ones((2, 5, 3, 2), "float32")
    assert "could not be proven" in reason(model, example)


def test_operations_that_keep_an_order_are_known():
    def between(x):
        x = nnx.gelu(nnx.softmax(jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))))
        x = nnx.avg_pool(x, (2, 2), strides=(1, 1)) + jax.nn.standardize(x[:, 1:, 1:])
        return jax.checkpoint(jnp.ravel)(x).reshape(len(x), -1)

    conv = nnx.Conv(2, 3, (2, 2), padding="VALID", rngs=R)
    model = nnx.Sequential(conv, between, nnx.Linear(12, 2, rngs=R))
    found = BACKEND.describe(model, np.ones((2, 5, 3, 2), "float32"))
    assert not found.why_not_portable()
    assert found.sites[1].in_group == (("S0", 4), ("C", 3))


def test_layers_are_drawn_by_their_own_initializers():
    model = nnx.Sequential(nnx.Linear(6, 50, rngs=R), nnx.Linear(50, 6, rngs=R))
    structure = BACKEND.describe(model)
    with pytest.warns(UserWarning, match=r"layers \['layers.0', 'layers.1'\].*kernel_init"):
        drawn = BACKEND.redraw(model, structure, 0)
    assert np.std(drawn["layers.0.weight"]) == pytest.approx(6**-0.5, rel=0.2)
    for layer in model.layers:
        layer.kernel_init = nnx.initializers.constant(3)
    drawn = BACKEND.redraw(model, structure, 0)
    assert (drawn["layers.1.weight"] == 3).all()
    own = nnx.Sequential(Scaled(6, 4, rngs=R))
    with pytest.raises(CapabilityError, match=r"layers\.0\.bias"):
        BACKEND.redraw(own, BACKEND.describe(own), 0)
