"""Carrying a ticket: torch to Keras and Keras to torch, proved or refused with nothing changed."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from torch import nn  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import (  # noqa: E402
    HoldError,
    InvalidValueError,
    MatchError,
    NotPortableError,
    ProbeMismatchError,
)
from ltcore.matching import match_by_graph  # noqa: E402
from ltcore.parameters import in_canonical_order  # noqa: E402

# Keras 3.15 off TensorFlow with numpy 2.4: reading a variable makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
RNG = np.random.default_rng(0)


def torch_mlp():
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def keras_mlp():
    return keras.Sequential(
        [L.Input((12,)), L.Dense(20, "relu"), L.Dense(10, "relu", name="hidden"), L.Dense(4)]
    )


class TorchConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.ModuleList([nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3)])
        self.hidden, self.out = nn.Linear(6 * 4 * 2, 9), nn.Linear(9, 4)

    def forward(self, x):
        for conv in self.features:
            x = conv(x).relu()
        x = nn.functional.max_pool2d(x, (2, 3))
        return self.out(self.hidden(x.flatten(1)).relu())


def keras_conv():
    return keras.Sequential([
        L.Input((10, 8, 2)), L.Conv2D(5, 3, padding="same", activation="relu"),
        L.Conv2D(6, 3, activation="relu"), L.MaxPooling2D((2, 3)), L.Flatten(),
        L.Dense(9, "relu"), L.Dense(4),
    ])  # fmt: skip


class KerasConv(keras.Model):
    """The same, subclassed, with its own way to flatten."""

    def __init__(self):
        super().__init__()
        self.convs = [L.Conv2D(5, 3, padding="same"), L.Conv2D(6, 3)]
        self.pool = L.MaxPooling2D((2, 3))
        self.hidden, self.out = L.Dense(9), L.Dense(4)

    def call(self, x):
        for conv in self.convs:
            x = keras.ops.relu(conv(x))
        x = self.pool(x)
        x = keras.ops.reshape(x, (-1, 6 * 4 * 2))
        return self.out(keras.ops.relu(self.hidden(x)))


def keras_conv_subclassed():
    model = KerasConv()
    model(np.zeros((1, 10, 8, 2), np.float32))
    return model


def torch_bn():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def keras_bn(epsilon=1e-5):
    x = inputs = L.Input((10, 8, 2))
    x = L.ReLU()(
        L.BatchNormalization(epsilon=epsilon, momentum=0.9)(L.Conv2D(6, 3, use_bias=False)(x))
    )
    x = L.ReLU()(L.BatchNormalization(epsilon=epsilon, momentum=0.9)(L.DepthwiseConv2D(3)(x)))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 1)(x))
    return keras.Model(inputs, L.Dense(4)(x))


PAIRS = {
    "mlp": (torch_mlp, keras_mlp, (12,)),
    "conv": (TorchConv, keras_conv, (2, 10, 8)),
    "conv subclassed": (TorchConv, keras_conv_subclassed, (2, 10, 8)),
    "batch norm": (torch_bn, keras_bn, (2, 10, 8)),
}


def data(shape, n=24):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, *shape)).astype(np.float32)
    return x, rng.integers(0, 4, n)


def last(x):
    """Channels first to channels last."""
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


def train_torch(model, updates=6, shape=None):
    x, y = data(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(updates):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()


def train_keras(model, updates=6, shape=None):
    x, y = data(shape)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # fmt: skip
    model.fit(last(x), y, batch_size=len(x), epochs=updates, shuffle=False, verbose=0)


def out_torch(model, x):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x)).numpy()


def out_keras(model, x):
    return keras.ops.convert_to_numpy(model(last(x), training=False))


def find(model, train, shape, **options):
    return lt.find_ticket(model, lambda m: train(m, shape=shape), rounds=2, rate=0.4,
                          rewind_to=3, **options)  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("direction", ["torch to keras", "keras to torch"])
def test_a_ticket_found_in_one_works_in_the_other(pair, direction, tmp_path):
    make_torch, make_keras, shape = PAIRS[pair]
    torch.manual_seed(0)
    keras.utils.set_random_seed(1)
    source, target = make_torch(), make_keras()
    train_source, train_target, example = train_torch, train_keras, last(data(shape)[0][:1])
    out_source, out_target = out_torch, out_keras
    if direction == "keras to torch":
        source, target = make_keras(), make_torch()
        train_source, train_target, example = train_keras, train_torch, data(shape)[0][:1]
        out_source, out_target = out_keras, out_torch
    search = find(source, train_source, shape)
    assert search.ticket.probe is not None, search.ticket.structure.why_not_portable()
    search.ticket.save(tmp_path / "t")

    applied = lt.load(tmp_path / "t").apply(target, example=example)

    assert applied.masks.kept == search.ticket.masks.kept
    assert [applied.masks.counts[n][0] for n in applied.masks] == [
        search.ticket.masks.counts[n][0] for n in search.ticket.masks
    ]
    ours = in_canonical_order(search.ticket.masks, search.ticket.structure).values()
    theirs = in_canonical_order(applied.masks, applied.structure).values()
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    x, _ = data(shape, 50)
    expected, found = out_source(source, x), out_target(target, x)
    assert np.abs(expected - found).max() <= 1e-5 * max(1, np.abs(expected).max())
    before = found
    train_target(target, updates=3, shape=shape)
    applied.check()
    assert not np.allclose(out_target(target, x), before), "training goes on"


@pytest.mark.parametrize("pair", PAIRS)
def test_both_frameworks_choose_the_same_masks_for_equal_weights(pair):
    """Also where everything ties: the rule is over canonical positions."""
    make_torch, make_keras, shape = PAIRS[pair]
    x = data(shape)[0][:1]
    source = make_torch()
    with torch.no_grad():
        for p in source.parameters():
            p.copy_(torch.round(p * 8) / 8)  # many ties
    first = lt.prune(source, sparsity=0.0, example=x)
    ticket = lt.Ticket.from_model(source, example=x)
    first.release()
    twin = make_keras()
    ticket.apply(twin, example=last(x)).release()
    a = lt.prune(source, sparsity=0.6, scope="layer", example=x)
    b = lt.prune(twin, sparsity=0.6, scope="layer", example=last(x))
    assert a.masks.kept < a.masks.total
    ours = in_canonical_order(a.masks, a.structure).values()
    theirs = in_canonical_order(b.masks, b.structure).values()
    assert all(np.array_equal(m, n) for m, n in zip(ours, theirs, strict=True))


def test_masks_only_and_fresh_weights():
    torch.manual_seed(0)
    x = data((12,))[0][:1]
    ticket = find(torch_mlp(), train_torch, (12,)).ticket
    keras.utils.set_random_seed(3)
    model = keras_mlp()
    before = [w.copy() for w in model.get_weights()]
    with ticket.apply(model, example=x, weights="keep") as hold:
        kernel = model.layers[0].kernel.numpy()
        mask = hold.masks[list(hold.masks)[0]].T
        assert np.array_equal(kernel, np.where(mask, before[0], 0))
        assert np.array_equal(model.get_weights()[1], before[1])
    drawn = []
    for seed in (1, 1, 2):
        ticket.apply(model, example=x, weights="reinit", seed=seed).release()
        drawn.append(model.layers[0].kernel.numpy().copy())
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert np.array_equal(drawn[2] != 0, mask)
    with pytest.raises(InvalidValueError, match="weights is 'best'"):
        ticket.apply(model, weights="best")


def snapshot(model):
    return [w.copy() for w in model.get_weights()]


def refused(ticket, model, error, match, **options):
    before = snapshot(model)
    with pytest.raises(error, match=match):
        ticket.apply(model, **options)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert lt.held(model) is None


@pytest.fixture(scope="module")
def bn_ticket():
    torch.manual_seed(0)
    return find(torch_bn(), train_torch, (2, 10, 8)).ticket


@pytest.fixture(scope="module")
def mlp_ticket():
    torch.manual_seed(0)
    return find(torch_mlp(), train_torch, (12,)).ticket


def test_an_epsilon_that_differs_is_found_and_named(bn_ticket):
    refused(bn_ticket, keras_bn(epsilon=1e-3), ProbeMismatchError,
            r"made-up weights.*do not compute.*eps is 1e-05 in the ticket, 0.001")  # fmt: skip


def test_an_activation_that_differs_is_found(mlp_ticket):
    other = keras.Sequential([L.Input((12,)), L.Dense(20, "relu"), L.Dense(10, "tanh"), L.Dense(4)])
    refused(mlp_ticket, other, ProbeMismatchError, "activations")


def test_what_trains_differently_but_computes_the_same_is_a_warning(bn_ticket):
    x = inputs = L.Input((10, 8, 2))
    x = L.ReLU()(L.BatchNormalization(epsilon=1e-5)(L.Conv2D(6, 3, use_bias=False)(x)))
    x = L.ReLU()(L.BatchNormalization(epsilon=1e-5)(L.DepthwiseConv2D(3)(x)))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 1)(x))
    with pytest.warns(UserWarning, match=r"would not train alike: 1: momentum is 0.1 .* 0.01 in"):
        bn_ticket.apply(keras.Model(inputs, L.Dense(4)(x)))


def test_a_model_of_other_inputs_is_refused_in_one_sentence(mlp_ticket):
    inputs = L.Input((3, 4))
    x = L.Dense(10, "relu")(L.Dense(20, "relu")(L.Reshape((12,))(inputs)))
    refused(
        mlp_ticket, keras.Model(inputs, L.Dense(4)(x)), MatchError, "inputs of the ticket|order"
    )


def test_another_architecture_lists_both_sides_with_shapes(mlp_ticket):
    other = keras.Sequential([L.Input((12,)), L.Dense(20), L.Dense(11), L.Dense(4)])
    refused(mlp_ticket, other, MatchError,
            r"missing from the model \['2 \(linear: weight \(10, 20\).*unexpected in the model "
            r"\['dense_1 \(linear: weight \(11, 20\)")  # fmt: skip
    deeper = keras.Sequential([L.Input((12,)), L.Dense(20), L.Dense(10), L.Dense(4), L.Dense(4)])
    refused(mlp_ticket, deeper, MatchError, r"missing from the model \[\].*dense_3 \(linear")


def test_another_architecture_in_the_same_framework(mlp_ticket):
    model = nn.Sequential(nn.Linear(12, 21), nn.ReLU(), nn.Linear(21, 10), nn.Linear(10, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MatchError, match=r"missing from the model \['4.weight', '4.bias'\].*"
                       r"unexpected in the model \['3.weight', '3.bias'\].*"
                       r"0.weight: ticket \(20, 12\), model \(21, 12\)"):  # fmt: skip
        mlp_ticket.apply(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_names_in_the_same_framework(mlp_ticket):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.b, self.a = nn.Linear(10, 4), nn.Linear(20, 10), nn.Linear(12, 20)

        def forward(self, x):
            return self.c(self.b(self.a(x).relu()).relu())

    x = data((12,))[0]
    model = Named()
    with pytest.raises(MatchError, match=r"missing from the model.*'0.weight'"):
        mlp_ticket.apply(model)
    hold = mlp_ticket.apply(model, example=x[:1])
    twin = torch_mlp()
    mlp_ticket.apply(twin)
    assert np.allclose(out_torch(model, x), out_torch(twin, x), atol=1e-6)
    assert np.array_equal(hold.masks["a.weight"], mlp_ticket.masks["0.weight"])


def test_an_unbuilt_keras_model_says_what_to_do(mlp_ticket):
    model = keras.Sequential([L.Dense(20, "relu"), L.Dense(10, "relu"), L.Dense(4)])
    with pytest.raises(lt.LtcoreError, match="(?i)not built|no weights|no values"):
        lt.prune(model, sparsity=0.5)
    applied = mlp_ticket.apply(model, example=data((12,))[0][:1])
    assert applied.masks.kept == mlp_ticket.masks.kept


def test_a_ticket_made_without_an_example_stays_in_its_framework():
    model = torch_mlp()
    lt.prune(model, sparsity=0.5)
    ticket = lt.Ticket.from_model(model)
    assert ticket.probe is None
    refused(ticket, keras_mlp(), NotPortableError, "own framework.*no example.*example=")
    assert ticket.apply(torch_mlp()).masks == ticket.masks


def test_unknown_layers_stay_in_their_framework():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.fc = nn.Parameter(torch.ones(12)), nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(x * self.scale)

    model, x = Odd(), data((12,))[0]
    lt.prune(model, sparsity=0.5)
    ticket = lt.Ticket.from_model(model, example=x[:1])
    twin = Odd()
    ticket.apply(twin)
    assert np.allclose(out_torch(twin, x), out_torch(model, x))
    target = keras.Sequential([L.Input((12,)), L.Dense(4)])
    refused(ticket, target, NotPortableError, "'odd' is of a kind that has no portable layout")


def test_layers_wired_differently_are_named(mlp_ticket):
    inputs, side = L.Input((12,)), L.Input((20,))
    loose = L.Dense(20)(inputs)
    tail = L.Dense(4)(L.Dense(10)(side))
    refused(mlp_ticket, keras.Model([inputs, side], [loose, tail]), MatchError,
            r"wires them differently.*0 \(linear.*in the ticket.*dense \(linear")  # fmt: skip


class TorchBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.relu(self.left(x)) - torch.tanh(self.right(x)))


def keras_branches():
    inputs = L.Input((6,))
    second = L.Dense(5, "tanh", name="b")(inputs)
    first = L.Dense(5, "relu", name="a")(inputs)
    return keras.Model(inputs, L.Dense(2, name="end")(L.Subtract()([first, second])))


def test_a_mapping_is_checked_and_proved():
    torch.manual_seed(0)
    model = TorchBranches()
    x = data((6,))[0]
    lt.prune(model, sparsity=0.3)
    ticket = lt.Ticket.from_model(model, example=x[:1])
    twin = keras_branches()
    refused(ticket, twin, ProbeMismatchError, "do not compute", mapping={"left": "b"})
    refused(ticket, twin, MatchError, "the model has no site 'z'; it has", mapping={"left": "z"})
    refused(ticket, twin, MatchError, "the ticket has no site 'q'", mapping={"q": "a"})
    refused(ticket, twin, MatchError, r"left \(linear.*end \(linear", mapping={"left": "end"})
    refused(ticket, twin, MatchError, "two of the ticket", mapping={"left": "a", "right": "a"})
    assert ticket.match(twin) == {"left": "a", "right": "b", "out": "end"}
    ticket.apply(twin, mapping={"left": "a"})
    assert np.allclose(out_keras(twin, x), out_torch(model, x), atol=1e-5)


def test_swapped_sites_would_be_caught_by_the_probe_not_by_the_weights():
    """Two equal layers in a row: the graph tells them apart, by what is around them."""
    a = lt.Structure((_site("x", ()), _site("y", ("x",)), _site("z", ("y",))))
    assert match_by_graph(a, a).pairs == {"x": "x", "y": "y", "z": "z"}


def _site(name, preds):
    return lt.Site(name, "linear", (lt.Role("weight", name, (3, 3), "float32"),), preds=preds)


def test_a_held_target_is_not_overwritten_silently(mlp_ticket):
    model = torch_mlp()
    lt.prune(model, sparsity=0.2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(HoldError, match="held already"):
        mlp_ticket.apply(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert mlp_ticket.apply(model, existing="replace").masks == mlp_ticket.masks


def test_hold_takes_a_tickets_masks(mlp_ticket):
    model = torch_mlp()
    before = model[0].weight.detach().clone()
    hold = lt.hold(model, mlp_ticket)
    assert hold.masks == mlp_ticket.masks
    mask = torch.from_numpy(hold.masks["0.weight"].copy())
    assert torch.equal(model[0].weight, torch.where(mask, before, 0))


@pytest.mark.engines("tensorflow", "jax", reason="torch is there")
def test_the_source_framework_need_not_be_there(tmp_path, mlp_ticket):
    """A process without torch loads the ticket and proves it."""
    import subprocess
    import sys

    mlp_ticket.save(tmp_path / "t")
    code = """
import sys
import keras, ltcore as lt, numpy as np
L = keras.layers
m = keras.Sequential([L.Input((12,)), L.Dense(20, "relu"), L.Dense(10, "relu"), L.Dense(4)])
kept = lt.load(sys.argv[1]).apply(m).masks.kept
assert "torch" not in sys.modules
print(kept)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True,
                            text=True, env={**os.environ})  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) == mlp_ticket.masks.kept


class Permuted(nn.Module):
    """Flattens in another order than torch's usual one."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 5, 3), nn.Linear(5 * 8 * 6, 4)

    def forward(self, x):
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1).flatten(1))


def test_feature_orders_never_mix(tmp_path):
    """Traced or not, within a framework masks and weights mean the same positions."""
    x = data((2, 10, 8))[0]
    model = Permuted()
    search = find(model, train_torch, (2, 10, 8))
    assert search.ticket.structure.by_name["fc.weight"][0].in_group[-1] == ("C", 5)
    search.ticket.save(tmp_path / "t")
    expected = out_torch(model, x)
    for options in ({}, {"example": x[:1]}):
        twin = Permuted()
        hold = lt.load(tmp_path / "t").apply(twin, **options)
        assert np.allclose(out_torch(twin, x), expected, atol=1e-6)
        assert hold.masks == search.hold.masks
    zeros = (model.fc.weight == 0).sum()
    search.hold.release()
    with lt.hold(model, search.ticket) as hold:
        assert (model.fc.weight == 0).sum() == zeros
    with lt.hold(model, search.ticket.masks):
        assert (model.fc.weight == 0).sum() == zeros
    usual = keras.Sequential([L.Input((10, 8, 2)), L.Conv2D(5, 3, activation="relu"), L.Flatten(),
                              L.Dense(4)])  # fmt: skip
    search.ticket.apply(usual)
    assert np.allclose(out_keras(usual, x), expected, atol=1e-5)


class Wired(nn.Module):
    """The names and shapes of a ticket's model, but another function."""

    def __init__(self, act=torch.relu, permute=False):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 5, 3), nn.Linear(5 * 8 * 6, 4)
        self.act, self.permute = act, permute

    def forward(self, x):
        x = self.act(self.conv(x))
        return self.fc((x.permute(0, 2, 3, 1) if self.permute else x).flatten(1))


def test_equal_names_prove_nothing_where_the_graph_is_known():
    x = data((2, 10, 8))[0]
    source = Wired()
    lt.prune(source, sparsity=0.4)
    ticket = lt.Ticket.from_model(source, example=x[:1])
    other = Wired(act=torch.tanh)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ProbeMismatchError, match="do not compute the same"):
        ticket.apply(other, example=x[:1])
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    permuted = Wired(permute=True)
    ticket.apply(permuted, example=x[:1])
    assert np.allclose(out_torch(permuted, x), out_torch(source, x), atol=1e-6)


def test_a_hold_that_fails_changes_nothing(mlp_ticket, monkeypatch):
    from ltcore.plugins import detect

    for held in (False, True):
        model = torch_mlp()
        if held:
            lt.prune(model, sparsity=0.2)
        hold, before = lt.held(model), {k: v.clone() for k, v in model.state_dict().items()}
        backend = detect(model)
        real, calls = backend.hold, []

        def fails_once(*args, real=real, calls=calls):
            calls.append(args)
            if len(calls) == 1:
                raise RuntimeError("no hooks today")
            return real(*args)

        monkeypatch.setattr(backend, "hold", fails_once)
        with pytest.raises(RuntimeError, match="no hooks"):
            mlp_ticket.apply(model, existing="replace")
        monkeypatch.undo()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert lt.held(model) is hold
        train_torch(model, 2, (12,))
        if held:
            hold.check()


def test_dictionaries_of_outputs_are_compared_key_by_key():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            return {"z": self.a(x), "b": self.b(x)}

    model, x = Two(), data((6,))[0]
    lt.prune(model, sparsity=0.3)
    ticket = lt.Ticket.from_model(model, example=x[:1])
    inputs = L.Input((6,))
    twin = keras.Model(inputs, {"z": L.Dense(3)(inputs), "b": L.Dense(2)(inputs)})
    ticket.apply(twin)
    assert np.allclose(
        keras.ops.convert_to_numpy(twin(x)["z"]),
        model(torch.from_numpy(x))["z"].detach(),
        atol=1e-5,
    )
