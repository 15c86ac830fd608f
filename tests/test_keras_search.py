"""The search in Keras: in `fit`, compiled once outside, with no callback of the user's."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import ltcore as lt  # noqa: E402
from ltcore.errors import InvalidValueError, NonFiniteError  # noqa: E402
from own_loops import Loop  # noqa: E402

# Keras 3.15 on PyTorch with numpy 2.4: reading a variable makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
X = np.random.default_rng(1).standard_normal((64, 6, 6, 1)).astype(np.float32)
Y = np.random.default_rng(2).integers(0, 4, 64)


def convnet(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        L.Input((6, 6, 1)), L.Conv2D(5, 3, padding="same"), L.BatchNormalization(), L.ReLU(),
        L.Flatten(), L.Dense(4),
    ])  # fmt: skip


def compiled(model, **options):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options,
    )  # fmt: skip
    return model


class Fit:
    """Train 12 updates with fit, and write down where each training began."""

    def __init__(self, updates=12):
        self.updates = updates
        self.starts, self.ends, self.began = [], [], []

    def __call__(self, model):
        self.run(model, 0)

    def run(self, model, start_step):
        self.began.append(int(model.optimizer.iterations.numpy()))
        self.starts.append([w.copy() for w in model.get_weights()])
        rows = 8 * (self.updates - start_step)
        x, y = np.tile(X, (2, 1, 1, 1))[:rows], np.tile(Y, 2)[:rows]
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        self.ends.append([w.copy() for w in model.get_weights()])


class Resuming(Fit):
    def __call__(self, model, start_step):
        self.run(model, start_step)


def after(updates, **options):
    """The weights after so many updates, from an independent run without ltcore."""
    model = compiled(convnet(), **options)
    model.fit(np.tile(X, (2, 1, 1, 1))[: 8 * updates], np.tile(Y, 2)[: 8 * updates], batch_size=8,
              shuffle=False, verbose=0)  # fmt: skip
    return model.get_weights()


OPTIONS = {
    "graph": {},
    "steps_per_execution": {"steps_per_execution": 4},
    "jit": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}
if keras.backend.backend() == "torch":  # it has one step an execution, and its compiler takes long
    del OPTIONS["steps_per_execution"], OPTIONS["jit"]


@pytest.mark.parametrize("options", [*OPTIONS.values()], ids=[*OPTIONS])
def test_every_round_starts_from_step_k_bit_for_bit(options):
    model, train = compiled(convnet(), **options), Fit()
    search = lt.find_ticket(model, train, rounds=3, rate=0.3, rewind_to=5, evaluate=lambda m: 0.0)
    point = after(5, **options)
    conv, dense = (search.hold.structure.sites[i].name for i in (0, 2))
    assert [round_.steps for round_ in search.rounds] == [12] * 4
    for index in (1, 2, 3):
        masks = search.rounds[index].masks
        kept = list(point)
        kept[0] = np.where(masks[f"{conv}.weight"].transpose(2, 3, 1, 0), point[0], 0)
        kept[6] = np.where(masks[f"{dense}.weight"].T, point[6], 0)
        for position, (found, expected) in enumerate(zip(train.starts[index], kept, strict=True)):
            assert found.tobytes() == expected.tobytes(), (index, position)
    search.hold.check()
    weights = model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(weights, train.ends[-1], strict=True))


def test_the_compiled_optimizer_is_fresh_every_round():
    train = Fit()
    first = lt.find_ticket(compiled(convnet()), train, rounds=2, rate=0.3)
    assert train.began == [0, 0]

    class Recompiling(Fit):
        def __call__(self, model):
            compiled(model)
            super().__call__(model)

    other = Recompiling()
    second = lt.find_ticket(compiled(convnet()), other, rounds=2, rate=0.3)
    for ours, theirs in zip(train.ends, other.ends, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert first.ticket.masks == second.ticket.masks


def test_resuming_sets_the_optimizers_count_and_provenance_says_so():
    train = Resuming()
    search = lt.find_ticket(compiled(convnet()), train, rounds=2, rate=0.3, rewind_to=5)
    assert train.began == [0, 5]
    assert search.rounds[1].steps == 7
    assert search.ticket.provenance["rewind"] == {"kind": "step", "step": 5, "schedule": "resumed"}


def test_same_seed_same_bytes(tmp_path):
    for name in "ab":
        model = compiled(convnet())
        lt.find_ticket(model, Fit(), rounds=1, rate=0.3, rewind_to=2).ticket.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_reinit_draws_from_each_layers_own_initializer():
    train = Fit(2)
    lt.find_ticket(compiled(convnet()), train, rounds=2, rate=0.2, rewind_to="reinit",
                   evaluate=lambda m: 0.0)  # fmt: skip
    start, first, second = (train.starts[i][6] for i in (0, 1, 2))
    limit = (6 / (180 + 4)) ** 0.5  # Glorot uniform
    for drawn in (first, second):
        assert 0.8 * limit < np.abs(drawn).max() <= limit
        assert not np.array_equal(drawn[drawn != 0], start[drawn != 0])
    assert not np.array_equal(first[second != 0], second[second != 0])
    assert not train.starts[1][7].any()


def test_a_rewind_step_that_training_never_reaches():
    with pytest.raises(InvalidValueError, match="step 500.*made 12 optimizer updates"):
        lt.find_ticket(compiled(convnet()), Fit(), rounds=1, rate=0.2, rewind_to=500)


def test_nan_weights_name_the_parameter():
    model = convnet()
    kernel = model.layers[-1].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(NonFiniteError, match=r"'dense\.weight'"):
        lt.prune(model, sparsity=0.5)
    assert lt.held(model) is None


def test_a_criterion_with_gradients_agrees_with_torch():
    torch = pytest.importorskip("torch")

    @lt.criterion("test-snip-like", needs={"gradient"})
    def rule(param):
        return abs(param.weight * param.gradient)

    torch.manual_seed(0)
    source = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4))
    lt.prune(source, sparsity=0.0)
    x = np.random.default_rng(3).standard_normal((32, 6)).astype(np.float32)
    y = np.random.default_rng(4).integers(0, 4, 32)
    ticket = lt.Ticket.from_model(source, example=x)
    twin = keras.Sequential([L.Input((6,)), L.Dense(20, "relu"), L.Dense(4)])
    ticket.apply(twin)
    a = lt.prune(source, 0.5, criterion=rule, loss=torch.nn.functional.cross_entropy,
                 batches=[(torch.from_numpy(x), torch.from_numpy(y))])  # fmt: skip
    b = lt.prune(twin, 0.5, criterion=rule, batches=[(x, y)],
                 loss=lambda out, y: keras.ops.mean(
                     keras.losses.sparse_categorical_crossentropy(
                         y, out, from_logits=True)))  # fmt: skip
    for ours, theirs in zip(a.masks.values(), b.masks.values(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.engines("tensorflow", "jax", reason="a compiled step of the user's own")
def test_a_training_step_compiled_once_by_the_user_is_held():
    """A function that lives as long as the script, traced in round 0."""
    model = keras.Sequential([L.Input((6,)), L.Dense(8, "tanh"), L.Dense(2)])
    x = np.random.default_rng(0).standard_normal((16, 6)).astype("float32")
    y = np.ones((16, 2), "float32")
    step = Loop(model, keras.optimizers.Adam(0.05), compiled=True)

    def train(model):
        for _ in range(5):
            step(x, y)

    search = lt.find_ticket(model, train, rounds=2, rate=0.4, evaluate=lambda m: 0.0)
    search.hold.check()
    assert [round_.steps for round_ in search.rounds] == [5, 5, 5]
    live = sum(int(np.count_nonzero(layer.kernel.numpy())) for layer in model.layers)
    assert live == search.ticket.masks.kept
