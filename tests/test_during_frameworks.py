"""What ltcore does while PyTorch and Keras models train: the same in both, zeros at every step."""

import os
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import ltcore as lt  # noqa: E402
from ltcore_keras._engine import ENGINE  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((24, 1, 6, 6)).astype(np.float32)
LABELS = RNG.integers(0, 4, 24)
KERNELS = ("conv", "dense", "out")


class Torch:
    """A small convolutional network, its loop, and ways to look inside, in PyTorch."""

    x, y = torch.from_numpy(IMAGES), torch.from_numpy(LABELS)
    loss = staticmethod(torch.nn.functional.cross_entropy)

    def __init__(self):
        torch.manual_seed(0)
        layers = {
            "conv": torch.nn.Conv2d(1, 4, 3), "relu": torch.nn.ReLU(),
            "flatten": torch.nn.Flatten(), "dense": torch.nn.Linear(64, 12),
            "relu2": torch.nn.ReLU(), "out": torch.nn.Linear(12, 4),
        }  # fmt: skip
        self.model = torch.nn.Sequential()
        for name, layer in layers.items():
            self.model.add_module(name, layer)

    def compile(self, optimizer):
        made = {
            "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
            "adam": lambda p: torch.optim.Adam(p, 0.01),
        }
        self.optimizer = made[optimizer](self.model.parameters())
        return self

    def train(self, updates):
        for _ in range(updates):
            self.optimizer.zero_grad()
            self.loss(self.model(self.x), self.y).backward()
            self.optimizer.step()

    def read(self):
        named = dict(self.model.named_parameters())
        return {f"{n}.weight": named[f"{n}.weight"].detach().numpy().copy() for n in KERNELS}

    def slots(self):
        """Return the optimizer's arrays for each kernel."""
        named = dict(self.model.named_parameters())
        return {
            f"{n}.weight": [
                v.numpy().copy()
                for v in self.optimizer.state[named[f"{n}.weight"]].values()
                if isinstance(v, torch.Tensor) and v.dim()
            ]
            for n in KERNELS
        }

    def slopes(self, values):
        """Return the dense gradients at ``values``, by torch alone."""
        twin = Torch().model
        twin.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for name, array in values.items():
                dict(twin.named_parameters())[name].copy_(torch.from_numpy(array))
        self.loss(twin(self.x), self.y).backward()
        return {f"{n}.weight": dict(twin.named_parameters())[f"{n}.weight"].grad.numpy()
                for n in KERNELS}  # fmt: skip


class Keras:
    """The same in Keras; the loop is fit, and the first call of it compiles."""

    x, y = np.moveaxis(IMAGES, 1, -1), LABELS
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def __init__(self):
        keras.utils.set_random_seed(0)
        layers = keras.layers
        self.model = keras.Sequential(
            [layers.Input((6, 6, 1)), layers.Conv2D(4, 3, activation="relu", name="conv"),
             layers.Flatten(), layers.Dense(12, activation="relu", name="dense"),
             layers.Dense(4, name="out")]
        )  # fmt: skip

        def loss(outputs, targets):
            return Keras.loss(targets, outputs)

        self.loss = loss

    def compile(self, optimizer, **options):
        made = {
            "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
            "adam": lambda: keras.optimizers.Adam(0.01),
        }
        self.optimizer = made[optimizer]()
        self.model.compile(self.optimizer, Keras.loss, **options)
        return self

    def train(self, updates):
        x, y = np.concatenate([self.x] * updates), np.concatenate([self.y] * updates)
        self.model.fit(x, y, batch_size=24, shuffle=False, verbose=0)

    def read(self):
        return {f"{n}.weight": canonical(self.model.get_layer(n).kernel) for n in KERNELS}

    def slots(self):
        paths = {f"{n}.weight": self.model.get_layer(n).kernel.path for n in KERNELS}
        return {
            name: [
                canonical(v) for v in self.optimizer.variables
                if path.replace("/", "_") in v.path.replace("/", "_")
            ]
            for name, path in paths.items()
        }  # fmt: skip


def canonical(variable):
    array = ENGINE.as_numpy(variable)
    return np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


WORLDS = {"torch": Torch, "keras": Keras}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]()


def assert_held(world, masks):
    for name, array in world.read().items():
        assert not array[~masks[name]].any(), name
        assert np.count_nonzero(array) > 0.9 * np.count_nonzero(masks[name])


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_gradual_pruning_holds_nests_and_ends_exactly(world, optimizer):
    world.compile(optimizer)
    masks = []
    with lt.prune_gradually(
        world.model, 0.9, begin=2, end=8, every=2, initial_sparsity=0.1
    ) as pruning:
        for _ in range(10):
            world.train(1)
            masks.append(pruning.masks)
            assert_held(world, pruning.masks)
    total = 36 + 768 + 48
    ramp = [0.9 - 0.8 * (1 - (t - 2) / 6) ** 3 for t in (2, 4, 6, 8)]
    kept = [total - int(s * total + 0.5) for s in ramp]
    assert pruning.history == list(zip((2, 4, 6, 8), kept, [total] * 4, strict=True))
    assert all(later.nested_in(earlier) for earlier, later in pairwise(masks))
    assert masks[0].kept == total


def test_gradual_pruning_within_one_fit():
    """The callback comes after each update of a compiled training, several in one call."""
    if os.environ["KERAS_BACKEND"] == "torch":
        pytest.skip("updates of this engine are not compiled")
    world = Keras().compile("adam", steps_per_execution=4)
    with lt.prune_gradually(world.model, 0.5, end=9, every=3) as pruning:
        world.train(12)
    assert [step for step, _, _ in pruning.history] == [0, 3, 6, 9]
    assert pruning.masks.sparsity == 0.5
    world.train(4)
    assert not all(array[~pruning.masks[n]].any() == 0 for n, array in world.read().items())


def test_gradients_may_score(world):
    world.compile("momentum")

    @lt.criterion("during-size-of-gradient", needs={"gradient"})
    def size(param):
        return np.abs(param.gradient)

    data = {"batches": [(world.x, world.y)], "loss": world.loss}
    with lt.prune_gradually(world.model, 0.6, end=3, every=1, criterion=size, **data) as pruning:
        world.train(4)
    assert pruning.masks.sparsity == pytest.approx(0.6, abs=1e-3)


def moved(before, after):
    return {n: after[n] & ~before[n] for n in after}


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_moments_of_grown_weights_start_at_zero(world, optimizer):
    """Nothing of what a weight had before it was dropped moves it when it is back."""
    world.compile(optimizer)
    world.train(2)
    grown, ever = 0, None
    options = {"method": lt.SET(0.8), "every": 1, "scope": "layer", "seed": 1}
    with lt.train_sparse(world.model, 0.5, **options) as training:
        counts = training.masks.counts
        for _ in range(6):
            before = training.masks
            world.train(1)
            assert training.masks.counts == counts
            assert_zero_where_grown(world, before, training.masks)
            back = moved(before, training.masks)
            if ever:
                grown += sum(np.count_nonzero(back[n] & ever[n]) for n in back)
            ever = {n: before[n] | (ever[n] if ever else False) for n in before}
    assert grown > 20, "weights came back that had trained before"
    assert len(training.history) == 6


def assert_zero_where_grown(world, before, after):
    weights, slots = world.read(), world.slots()
    for name, back in moved(before, after).items():
        assert back.any()
        assert not weights[name][back].any()
        assert slots[name], "the optimizer has moments"
        for slot in slots[name]:
            assert not slot[back].any()


def test_adam_moves_a_grown_weight_as_if_it_were_new():
    """Its first update is that of an Adam whose moments of this weight are zero."""
    world = Torch().compile("adam")
    world.train(3)
    with lt.train_sparse(world.model, 0.5, method=lt.SET(0.8), every=2, scope="layer") as training:
        world.train(1)
        before = training.masks
        world.train(1)
        back = moved(before, training.masks)["dense.weight"]
        gradient = world.slopes(world.read())["dense.weight"]
        world.train(1)
        steps = 6
        m, v = 0.1 * gradient / (1 - 0.9**steps), 0.001 * gradient**2 / (1 - 0.999**steps)
        expected = -0.01 * m / (np.sqrt(v) + 1e-8)
        found = world.read()["dense.weight"]
        np.testing.assert_allclose(found[back], expected[back], rtol=1e-4, atol=1e-9)


def test_rigl_grows_what_brute_force_grows():
    world = Torch().compile("momentum")
    data = {"batches": [(world.x, world.y)], "loss": world.loss}
    ranked = []
    with lt.train_sparse(world.model, 0.7, every=3, until=7, scope="layer", **data) as training:
        move = training._act

        def spied(step):
            ranked.append(world.read())
            move(step)

        training._act = spied
        for step in range(1, 7):
            before = training.masks
            world.train(1)
            if step % 3:
                assert training.masks == before
                continue
            values = ranked[-1]
            gradients = world.slopes(values)
            share = 0.15 * (1 + np.cos(np.pi * step / 7))
            for name, mask in before.items():
                expected = mask.copy()
                count = int(share * np.count_nonzero(mask) + 0.5)
                size = np.where(mask, np.abs(values[name]), np.inf)
                expected.flat[np.argsort(size, axis=None)[:count]] = False
                slope = np.where(expected, -1, np.abs(gradients[name]))
                expected.flat[np.argsort(-slope, axis=None)[:count]] = True
                assert np.array_equal(training.masks[name], expected), (step, name)
    assert len(ranked) == 2


def twins():
    """Return the two with equal weights, not held."""
    one, two = Torch(), Keras()
    lt.prune(one.model, 0.0)
    lt.Ticket.from_model(one.model, example=one.x).apply(two.model).release()
    lt.held(one.model).release()
    return one, two


def test_frameworks_move_alike():
    """The same weights and data give the same first masks, and the same moves of SET and RigL."""
    for method in ("set", "rigl"):
        one, two = twins()
        found = []
        for world in (one, two):
            world.compile("adam")
            training = lt.train_sparse(
                world.model, 0.8, method=method, every=2, until=5, seed=3, example=world.x[:1],
                batches=[(world.x, world.y)], loss=world.loss,
            )  # fmt: skip
            first = training.masks
            world.train(2)
            assert training.masks != first
            found.append(training.ticket())
            training.release()
        checked = lt.hold(one.model, found[1], example=one.x)
        assert checked.masks == found[0].masks, method


def test_frameworks_find_the_same_supermask():
    one, two = twins()
    found = [
        lt.find_supermask(
            world.model, [(world.x, world.y)], world.loss, steps=3, lr=10.0, seed=2,
            dynamic_scale=True, example=world.x[:1],
        )
        for world in (one, two)
    ]  # fmt: skip
    conv = [f.scores[n] for f, n in zip(found, ("conv.weight",) * 2, strict=True)]
    np.testing.assert_allclose(conv[0], conv[1], rtol=1e-3, atol=1e-6)
    assert np.abs(conv[0]).max() > 0.01
    dense = [f.scores["dense.weight"] for f in found]
    reordered = dense[1].reshape(12, 4, 4, 4).transpose(0, 3, 1, 2).reshape(12, 64)
    np.testing.assert_allclose(dense[0], reordered, rtol=1e-3, atol=1e-6)


def test_early_bird_stops_a_loop_and_a_fit(world):
    """Masks over norm scales; the user stops when the ticket is drawn."""
    world.compile("adam")
    with lt.early_bird(world.model, 0.5, every=2, window=3, threshold=0.2, rewind_to=0) as bird:
        start = world.read()
        if isinstance(world, Torch):
            for _ in range(30):
                world.train(1)
                if bird.drawn:
                    break
        else:
            stop = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: setattr(
                    world.model, "stop_training", bird.drawn
                )
            )
            data = [np.concatenate([a] * 30) for a in (world.x, world.y)]
            world.model.fit(*data, batch_size=24, verbose=0, callbacks=[stop])
    assert 6 <= bird.drawn_at < 30
    assert bird.steps == bird.drawn_at
    ticket = bird.ticket()
    assert all(np.array_equal(ticket.params[n], a) for n, a in start.items())
    with ticket.apply(world.model) as hold:
        assert hold.masks == bird.masks
        assert_held(world, hold.masks)


def test_scales_of_batch_norms_are_drawn_by_default():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(128, 4),
    )  # fmt: skip
    world = Torch()
    world.model = model
    torch.nn.init.uniform_(model[1].weight)
    world.compile("momentum")
    with lt.early_bird(model, 0.5, every=1, window=2) as bird:
        world.train(10)
    assert list(bird.masks) == ["1.weight"]
    assert bird.masks.counts == {"1.weight": (4, 8)}
    hold = bird.ticket().apply(model)
    world.train(3)
    channels = model[1](model[0](world.x)).abs().amax((0, 2, 3)) > 0
    assert np.array_equal(channels.numpy(), bird.masks["1.weight"])
    assert set(hold.masks) == {"1.weight", "1.bias"}


def test_an_untrained_lenet_reads_digits_through_a_supermask():
    """Zhou et al. 2019: frozen random weights, far above the 10 % of chance."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy(((images - images.mean()) / images.std()).astype(np.float32))
    y = torch.from_numpy(labels)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )  # fmt: skip
    before = {n: t.clone() for n, t in model.state_dict().items()}
    batches = list(zip(x[:1400].split(100), y[:1400].split(100), strict=True))
    loss = torch.nn.functional.cross_entropy

    def accuracy():
        with torch.no_grad():
            return float((model(x[1400:]).argmax(1) == y[1400:]).float().mean())

    untrained = accuracy()
    found = lt.find_supermask(
        model, batches, loss, steps=300, lr=20.0, signed_constant=True, dynamic_scale=True
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with found.apply(model):
        masked = accuracy()
    assert untrained < 0.25
    assert masked > 0.8, masked
