"""Derivatives and activations of torch modules, against torch's own and against brute force."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

from ltcore.errors import CapabilityError, InvalidValueError  # noqa: E402
from ltcore.masks import Masks  # noqa: E402
from ltcore_torch import _steps  # noqa: E402
from ltcore_torch._backend import TorchBackend  # noqa: E402

BACKEND = TorchBackend()
MSE = nn.functional.mse_loss


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def data(*shape, outputs=(2,), seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    y = torch.randn(shape[0], *outputs, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def some_vector(structure, seed=0):
    rng = np.random.default_rng(seed)
    return {info.name: rng.standard_normal(info.shape) for info in structure.infos}


def everything(model, batch, loss=MSE, names=()):
    """Return what gradients, fisher and hvp (and activations of ``names``) say."""
    structure = BACKEND.describe(model)
    found = {
        "gradients": BACKEND.gradients(model, structure, [batch], loss),
        "fisher": BACKEND.fisher(model, structure, [batch], loss),
        "hvp": BACKEND.hvp(model, structure, [batch], loss, some_vector(structure)),
    }
    if names:
        found["activations"] = BACKEND.activations(model, structure, [batch], names)
    return found


def assert_equal(found, wanted, tolerance=1e-6):
    for method, params in wanted.items():
        assert found[method].keys() == params.keys()
        largest = max(np.abs(array).max() for array in params.values())
        for name, array in params.items():
            scale = max(np.abs(array).max(), 1e-3 * largest)  # attention's key biases have none
            gap = np.abs(found[method][name] - array).max() / scale
            assert gap <= tolerance, (method, name, gap)


def by_torch(model, batch, loss=MSE):
    """The same by `torch.autograd.functional.hessian` and a loop of ``backward``."""
    twin = copy.deepcopy(model).eval()
    structure = BACKEND.describe(model)
    natives = {n: r.native for n, _, r in structure.items() if not r.state}
    params = {n: p.detach() for n, p in twin.named_parameters()}
    sizes = [params[native].numel() for native in natives.values()]

    def value(flat):
        parts = zip(natives.values(), flat.split(sizes), strict=True)
        lent = {n: part.view_as(params[n]) for n, part in parts}
        return loss(torch.func.functional_call(twin, lent, (batch[0],)), batch[1])

    def named(flat):
        parts = zip(natives.items(), flat.split(sizes), strict=True)
        return {name: part.view_as(params[n]).numpy() for (name, n), part in parts}

    flat = torch.cat([params[n].flatten() for n in natives.values()])
    vector = some_vector(structure)
    v = torch.cat([torch.from_numpy(vector[n]).flatten() for n in natives]).to(flat.dtype)
    squares = torch.zeros_like(flat)
    for i in range(len(batch[0])):
        twin.zero_grad()
        loss(twin(batch[0][i : i + 1]), batch[1][i : i + 1]).backward()
        grads = [dict(twin.named_parameters())[n].grad.flatten() for n in natives.values()]
        squares += torch.cat(grads) ** 2 / len(batch[0])
    gradient = torch.autograd.functional.jacobian(value, flat)
    hessian = torch.autograd.functional.hessian(value, flat)
    return {"gradients": named(gradient), "fisher": named(squares), "hvp": named(hessian @ v)}


def test_derivatives_are_those_of_torch():
    model, batch = net(torch.float64), data(5, 3, dtype=torch.float64)
    found = everything(model, batch)
    assert_equal(found, by_torch(model, batch), 1e-12)
    assert {a.dtype.name for one in found.values() for a in one.values()} == {"float64"}


def test_derivatives_of_short_floats_are_float32():
    batch = data(5, 3)
    wanted = everything(net(), batch)
    short = tuple(x.bfloat16() for x in batch)
    found = everything(net().bfloat16(), short)
    assert {a.dtype.name for one in found.values() for a in one.values()} == {"float32"}
    assert_equal(found, wanted, 0.1)


def test_small_gradients_do_not_vanish_when_squared():
    model, batch = net().half(), tuple(x.half() for x in data(2, 3))

    def small(outputs, targets):
        return MSE(outputs, targets) * 1e-3

    structure = BACKEND.describe(model)
    found = BACKEND.fisher(model, structure, [batch], small)["2.weight"]
    assert 0 < np.median(found) < 1e-6  # half ends at 6e-8


class InPlace(nn.Sequential):
    """A model that its user compiled in place."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.compile(backend="aot_eager")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m, backend="aot_eager"),
        lambda m: InPlace(*m),
        lambda m: nn.Sequential(torch.compile(m[0], backend="aot_eager"), *m[1:]),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
    ],
    ids=["compile", "in place", "a layer", "DataParallel", "AveragedModel"],
)
def test_wrapped_and_compiled_models(wrap):
    torch._dynamo.reset()
    batch = data(5, 3)
    plain, wrapped = net(), wrap(net())
    wrapped(batch[0])  # compiled code is there
    names = ["0.weight", "2.weight"]
    wanted = everything(plain, batch, names=names)
    assert_equal(everything(wrapped, batch, names=names), wanted)
    structure = BACKEND.describe(plain)
    at = {n: a.astype(np.float64) + 1 for n, a in BACKEND.read(plain, structure).items()}
    args = [batch[0].numpy()], [batch[1].numpy()], at
    found, wanted = (BACKEND.vjp(model, structure, *args) for model in (wrapped, plain))
    assert_equal({"vjp": found}, {"vjp": wanted}, 1e-12)


def test_autocast_of_the_caller_does_not_count():
    batch = data(5, 3)
    wanted = everything(net(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = everything(net(), batch)
    assert_equal(found, wanted)


def test_distributed_model_trains_on(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        batch = data(5, 3)
        model = nn.parallel.DistributedDataParallel(net())
        assert_equal(everything(model, batch), everything(net(), batch))
        for _ in range(2):
            MSE(model(batch[0]), batch[1]).backward()
        everything(model, batch)
        MSE(model(batch[0]), batch[1]).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_sparse_gradients_of_embeddings():
    x = torch.tensor([[0, 2, 2], [5, 1, 0]])
    y = data(2, 1)[1]
    models = []
    for sparse in (True, False):
        torch.manual_seed(0)
        embedding = nn.Embedding(7, 2, sparse=sparse)
        models.append(nn.Sequential(embedding, nn.Flatten(), nn.Tanh(), nn.Linear(6, 2)))
    found, wanted = (everything(model, (x, y)) for model in models)
    assert_equal(found, wanted)
    assert_equal(found, by_torch(models[1], (x, y)), 1e-5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_tied_weights():
    model, batch = Tied().double(), data(4, 3, outputs=(3,), dtype=torch.float64)
    assert_equal(everything(model, batch), by_torch(model, batch), 1e-12)
    structure = BACKEND.describe(model)
    at = {n: 2 * a for n, a in BACKEND.read(model, structure).items()}
    found = BACKEND.vjp(model, structure, [batch[0].numpy()], [batch[1].numpy()], at)
    twin = copy.deepcopy(model)
    BACKEND.write(twin, structure, at)
    (twin(batch[0]) * batch[1]).sum().backward()
    np.testing.assert_allclose(found["first.weight"], twin.first.weight.grad, rtol=1e-12)
    strength = BACKEND.activations(model, structure, [batch], ["first.weight"])["first.weight"]
    inner = torch.tanh(model.first(batch[0])).detach()
    seen = torch.cat([batch[0], inner]).square().mean(0).sqrt()
    np.testing.assert_allclose(strength, seen.expand(3, 3), rtol=1e-6)


def test_frozen_parameters_have_derivatives_and_stay_frozen():
    batch = data(5, 3)
    model = net()
    wanted = everything(model, batch)
    model[0].requires_grad_(False)
    assert_equal(everything(model, batch), wanted)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]

    def failing(outputs, targets):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        BACKEND.hvp(model, BACKEND.describe(model), [batch], failing, {})
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_batches_are_made_while_the_model_is_as_it_was():
    model, seen = net().train(), []
    model[0].weight.requires_grad_(False)

    def batches():
        for _ in range(2):
            seen.append((model[0].weight.requires_grad, model.training))
            yield data(5, 3)

    structure = BACKEND.describe(model)
    BACKEND.gradients(model, structure, batches(), MSE)
    BACKEND.fisher(model, structure, batches(), MSE)
    BACKEND.hvp(model, structure, batches(), MSE, {})
    assert seen == [(False, True)] * 6


def by_differences(model, batch, loss, names):
    """The Hessian product of a float64 model by differences of gradients."""
    structure = BACKEND.describe(model)
    vector = some_vector(structure)
    step, found = 1e-6, []
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        moved = {n: a + sign * step * vector[n] for n, a in BACKEND.read(model, structure).items()}
        BACKEND.write(twin, structure, moved)
        found.append(BACKEND.gradients(twin, structure, [batch], loss))
    return {n: (found[0][n] - found[1][n]) / (2 * step) for n in names}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class First(nn.Module):
    """The first output of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize(
    "make",
    [
        Attention,
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: First(nn.GRU(8, 8, batch_first=True)),
        lambda: First(nn.LSTM(8, 4, bidirectional=True, batch_first=True)),
        lambda: First(nn.RNN(8, 8, num_layers=2, batch_first=True)),
    ],
    ids=["attention", "transformer", "gru", "lstm", "rnn"],
)
def test_second_derivatives_of_fused_layers(make):
    torch.manual_seed(0)
    model, batch = make().double(), data(3, 5, 8, outputs=(5, 8), dtype=torch.float64)
    structure = BACKEND.describe(model)
    found = BACKEND.hvp(model, structure, [batch], MSE, some_vector(structure))
    wanted = by_differences(model, batch, MSE, list(found))
    assert_equal({"hvp": found}, {"hvp": wanted}, 1e-5)
    # float32 takes other kernels
    rounded = BACKEND.hvp(model.float(), structure, [tuple(t.float() for t in batch)], MSE,
                          some_vector(structure))  # fmt: skip
    assert_equal({"hvp": rounded}, {"hvp": found}, 1e-3)


class Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda y, t: Exp.apply(y).mean(), "once_differentiable"),
        (lambda y, t: torch.cdist(y, t).mean(), "_cdist_backward"),
    ],
)
def test_functions_without_second_derivative_are_refused(loss, reason):
    model, batch = net(), data(5, 3)
    with pytest.raises(CapabilityError, match=f"second derivatives.*{reason}"):
        everything(model, batch, loss)


def test_a_loss_without_curvature():
    model, batch = net(), data(5, 3)
    structure = BACKEND.describe(model)
    last = {"2.weight": np.ones((2, 4)), "2.bias": np.ones(2)}
    head = nn.Sequential(nn.Linear(3, 2))
    flat = {"0.bias": np.ones(2)}
    found = BACKEND.hvp(head, BACKEND.describe(head), [batch], lambda y, t: y.sum(), flat)
    assert not any(array.any() for array in found.values())
    found = BACKEND.hvp(model, structure, [batch], lambda y, t: y.sum(), last)
    assert found["0.weight"].any()
    assert not found["2.weight"].any()


@pytest.mark.parametrize(
    ("vector", "message"),
    [({"9.weight": np.ones(3)}, "no trained parameters"), ({"0.bias": np.ones(3)}, r"\(4,\)")],
)
def test_vectors_of_other_models_are_refused(vector, message):
    model = net()
    with pytest.raises(InvalidValueError, match=message):
        BACKEND.hvp(model, BACKEND.describe(model), [data(5, 3)], MSE, vector)


def test_batches_without_examples_are_refused():
    model = net()
    structure = BACKEND.describe(model)
    x, y = data(5, 3)
    with pytest.raises(InvalidValueError, match="axis 0"):
        BACKEND.fisher(model, structure, [(x, y[:3])], MSE)
    with pytest.raises(InvalidValueError, match="axis 0"):
        BACKEND.fisher(model, structure, [(x, torch.tensor(3.0))], MSE)
    for found in (
        lambda: BACKEND.fisher(model, structure, [], MSE),
        lambda: BACKEND.hvp(model, structure, [], MSE, {}),
        lambda: BACKEND.activations(model, structure, [], ["0.weight"]),
    ):
        with pytest.raises(InvalidValueError, match="batches is empty"):
            found()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x, z):
        return self.a(x) + self.b(z)


def test_several_inputs_and_targets():
    model, (x, y), (z, w) = Pair(), data(5, 3), data(5, 4, seed=2)

    def loss(output, targets):
        first, second = targets
        return MSE(output, first) + output.mul(second).tanh().mean()

    structure = BACKEND.describe(model)
    found = BACKEND.fisher(model, structure, [((x, z), (y, w))], loss)
    squares = []
    for i in range(5):
        model.zero_grad()
        part = slice(i, i + 1)
        loss(model(x[part], z[part]), (y[part], w[part])).backward()
        squares.append(model.b.weight.grad.numpy() ** 2)
    np.testing.assert_allclose(found["b.weight"], np.mean(squares, 0), rtol=1e-5)


def test_nothing_of_the_process_changes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.GRU(4, 4), First(nn.GRU(4, 2))
    )
    model[3] = First(model[3])
    model[1].eval()
    modes = [module.training for module in model.modules()]
    params, buffers = list(model.parameters()), list(model.buffers())
    values = [t.clone() for t in (*params, *buffers)]
    params[0].grad = torch.ones_like(params[0])
    attributes = [{k: id(v) for k, v in vars(m).items()} for m in model.modules()]
    random = torch.get_rng_state()
    x, y = data(5, 3)
    everything(model, (x, y), names=["0.weight"])
    structure = BACKEND.describe(model)
    at = BACKEND.read(model, structure)
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in at.items()}
    BACKEND.vjp(model, structure, [x.numpy()], [y.numpy()], wide)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    found = (*model.parameters(), *model.buffers())
    assert all(a is b for a, b in zip(found, (*params, *buffers), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, values, strict=True))
    assert [p.grad is not None for p in params] == [True] + [False] * (len(params) - 1)
    assert params[0].grad.eq(1).all()
    assert [{k: id(v) for k, v in vars(m).items()} for m in model.modules()] == attributes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


# vjp


def at_random(model, structure, dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(a.shape).astype(dtype) if a.dtype.kind == "f" else a
        for name, a in BACKEND.read(model, structure).items()
    }


@pytest.mark.parametrize(
    "make",
    [
        Attention,
        lambda: First(nn.LSTM(8, 8, batch_first=True)),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.BatchNorm1d(40),
                              nn.Unflatten(1, (5, 8))),
    ],
    ids=["attention", "lstm", "transformer", "parametrized", "batchnorm"],
)  # fmt: skip
def test_vjp_is_that_of_a_float64_copy(make):
    model = make()
    structure = BACKEND.describe(model)
    at = at_random(model, structure)
    at = {n: np.abs(a) if "running_var" in n else a for n, a in at.items()}
    x, c = data(3, 5, 8, outputs=(5, 8), dtype=torch.float64)
    found = BACKEND.vjp(model, structure, [x.numpy()], [c.numpy()], at)
    twin = copy.deepcopy(model).double()
    BACKEND.write(twin, structure, at)
    wanted = BACKEND.gradients(twin, structure, [(x, c)], lambda y, t: (y * t).sum())
    assert_equal({"vjp": found}, {"vjp": wanted}, 1e-10)
    assert {array.dtype.name for array in found.values()} == {"float64"}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_vjp_of_a_bfloat16_model():
    model = net()
    structure = BACKEND.describe(model)
    at = at_random(model, structure)
    x, c = (t.numpy() for t in data(5, 3))
    wanted = BACKEND.vjp(model, structure, [x], [c], at)
    found = BACKEND.vjp(model.bfloat16(), structure, [x], [c], at)
    assert_equal({"vjp": found}, {"vjp": wanted}, 1e-12)
    narrow = {n: a.astype(np.float32) for n, a in at.items()}
    found = BACKEND.vjp(model, structure, [x], [c], narrow)
    assert {array.dtype.name for array in found.values()} == {"float32"}
    assert_equal({"vjp": found}, {"vjp": wanted}, 1e-5)


class Casting(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 2), how

    def forward(self, x):
        return self.how(self.layer, x)


@pytest.mark.parametrize(
    "how",
    [
        lambda layer, x: layer(x.float()),
        lambda layer, x: layer(x).float(),
        lambda layer, x: layer(x) @ torch.eye(2, dtype=torch.float32),
    ],
    ids=["inside", "at the end", "a constant"],
)
def test_models_that_stay_in_float32_are_refused(how):
    model = Casting(how)
    structure = BACKEND.describe(model)
    x, c = (t.numpy() for t in data(5, 3))
    with pytest.raises(CapabilityError, match="does not compute in torch.float64"):
        BACKEND.vjp(model, structure, [x], [c], at_random(model, structure))
    BACKEND.vjp(model, structure, [x], [c], at_random(model, structure, np.float32))


def test_vjp_of_what_does_not_fit_is_refused():
    model = net()
    structure = BACKEND.describe(model)
    at = at_random(model, structure)
    x, c = (t.numpy() for t in data(5, 3))
    some = {name: at[name] for name in ("0.weight", "0.bias")}
    with pytest.raises(InvalidValueError, match=r"lack \['2.bias', '2.weight'\]"):
        BACKEND.vjp(model, structure, [x], [c], some)
    with pytest.raises(InvalidValueError, match=r"\['bias'\] are none"):
        BACKEND.vjp(model, structure, [x], [c], at | {"bias": np.ones(1)})
    with pytest.raises(InvalidValueError, match=r"shape \(9,\)"):
        BACKEND.vjp(model, structure, [x], [c], at | {"2.bias": np.ones(9)})
    with pytest.raises(InvalidValueError, match=r"cotangents.*\(5, 2\)"):
        BACKEND.vjp(model, structure, [x], [c[:, :1]], at)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        BACKEND.vjp(model, structure, [x[:, :2]], [c], at)
    assert not isinstance(caught.value, CapabilityError)


def test_vjp_of_unused_parameters_is_zero():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    model.forward = model["used"].forward
    structure = BACKEND.describe(model)
    x, c = (t.numpy() for t in data(5, 3))
    found = BACKEND.vjp(model, structure, [x], [c], at_random(model, structure))
    assert found["used.weight"].any()
    assert not found["unused.weight"].any()


# activations


def by_unfolding(layer, x):
    """What each weight of a convolution multiplies, found by setting weights to one."""
    squares = torch.zeros(layer.weight.shape, dtype=torch.float64)
    one = copy.deepcopy(layer).double().requires_grad_(False)
    one.bias = None
    for position in np.ndindex(*layer.weight.shape):
        one.weight.zero_()
        one.weight[position] = 1
        seen = one(x.double())[:, position[0]]
        squares[position] = seen.square().mean()
    return squares.sqrt().numpy()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(2, 4, (3, 2), padding="same", dilation=(2, 3)),
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 1), groups=2),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="reflect"),
        nn.Conv1d(2, 3, 3, padding="valid"),
        nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 0)),
    ],
    ids=["1d", "same", "grouped", "depthwise", "circular", "reflect", "valid", "3d"],
)
def test_activations_of_convolutions(layer):
    model = nn.Sequential(nn.Identity(), layer)
    x = data(3, layer.in_channels, *[7] * len(layer.kernel_size))[0]
    structure = BACKEND.describe(model)
    batches = [(x[:1], None), (x[1:], None)]
    found = BACKEND.activations(model, structure, batches, ["1.weight"])["1.weight"]
    np.testing.assert_allclose(found, by_unfolding(layer, x), rtol=1e-6)
    assert found.dtype == np.float32


def test_activations_of_transposed_convolutions():
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, output_padding=1)
    x = data(3, 4, 5, 5)[0]
    model = nn.Sequential(layer)
    found = BACKEND.activations(model, BACKEND.describe(model), [(x, x)], ["0.weight"])["0.weight"]
    rms = x.square().mean((0, 2, 3)).sqrt().numpy()
    np.testing.assert_allclose(found, np.broadcast_to(rms.reshape(4, 1, 1, 1), (4, 3, 3, 3)), 1e-6)


def test_activations_of_an_example_without_batch():
    model = nn.Sequential(nn.Conv1d(2, 3, 2))
    x = data(1, 2, 5)[0]
    structure = BACKEND.describe(model)
    whole, bare = (
        BACKEND.activations(model, structure, [(given, given)], ["0.weight"])["0.weight"]
        for given in (x, x[0])
    )
    np.testing.assert_array_equal(bare, whole)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(input=x)


def test_activations_of_a_layer_called_by_keyword_along_time():
    x = data(4, 5, 3)[0]
    model = Keyword()
    structure = BACKEND.describe(model)
    found = BACKEND.activations(model, structure, [(x, x)], ["layer.weight"])["layer.weight"]
    np.testing.assert_allclose(found, x.square().mean((0, 1)).sqrt().expand(2, 3), rtol=1e-6)


def test_activations_of_half_precision_do_not_overflow():
    half = nn.Sequential(nn.Linear(3, 2)).half()
    structure = BACKEND.describe(half)
    x = torch.full((2, 3), 1e4, dtype=torch.float16)
    found = BACKEND.activations(half, structure, [(x, x)], ["0.weight"])["0.weight"]
    np.testing.assert_allclose(found, 1e4, rtol=1e-2)


def test_activations_inside_a_fused_layer():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    structure = BACKEND.describe(model)
    x = data(3, 5, 8)[0]
    seen = []
    model.linear2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = BACKEND.activations(model, structure, [(x, x)], ["linear2.weight"])["linear2.weight"]
    assert len(seen) == 1
    np.testing.assert_allclose(found[0], seen[0].square().mean((0, 1)).sqrt(), rtol=1e-5)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)
        self.embedding, self.head = nn.Embedding(3, 2), nn.Linear(2, 3)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.layer(x) + nn.functional.linear(x, self.idle.weight)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (Attention, "attention.q.weight", "'linear' in MultiheadAttention"),
        (Attention, "attention.out_proj.weight", "'linear' in NonDynamically"),
        (lambda: First(nn.GRU(8, 8)), "layer.w_ih", "'gru' in GRU"),
        (net, "0.bias", "bias of a layer of kind 'linear'"),
        (Unused, "idle.weight", "not called"),
        (Unused, "embedding.weight", "'embedding'"),
    ],
)
def test_what_has_no_activations_is_refused(make, name, message):
    model = make()
    with pytest.raises(CapabilityError, match=f"{name}.*{message}|{message}"):
        BACKEND.activations(model, BACKEND.describe(model), [data(2, 3)], [name])


# watch


def trained(model, optimizer, steps=1):
    x, y = data(5, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        MSE(model(x), y).backward()
        optimizer.step()


def test_callback_of_a_closure_optimizer_is_called_once_a_step():
    model, heard = net(), []
    watch = BACKEND.watch(model, BACKEND.describe(model), [], heard.append)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = data(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = MSE(model(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert heard == [1, 2]
    assert watch.steps == 2


@pytest.fixture
def alone():
    """Nobody listens whose models other tests have left alive."""
    others = _steps._listeners[:]
    _steps._listeners.clear()
    while _steps._handles:
        _steps._handles.pop().remove()
    yield
    _steps._listeners.extend(others)


def test_callback_may_stop_the_watch_though_others_listen(alone):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = BACKEND.watch(model, BACKEND.describe(model), [], lambda step: watch.stop())
    others = []
    handle = register_optimizer_step_post_hook(lambda *args: others.append(1))
    try:
        trained(model, optimizer, 2)
    finally:
        handle.remove()
    assert len(others) == 2
    assert watch.steps == 1
    BACKEND.watch(model, BACKEND.describe(model), []).stop()
    assert not _steps._handles, "hooks of torch that nobody needs any more go"


def test_callback_prunes_and_scores_on_the_way():
    model = net()
    structure = BACKEND.describe(model)
    hold = BACKEND.hold(model, structure, Masks.ones({"0.weight": (4, 3)}))
    fewer = Masks({"0.weight": np.arange(12).reshape(4, 3) % 2 == 0})
    found = []

    def prune(step):
        found.append(BACKEND.gradients(model, structure, [data(5, 3)], MSE)["0.weight"])
        hold.update(fewer)

    watch = BACKEND.watch(model, structure, [], prune)
    trained(model, torch.optim.Adam(model.parameters()), 3)
    assert watch.steps == 3
    pruned = ~fewer["0.weight"]
    assert not BACKEND.read(model, structure)["0.weight"][pruned].any()
    assert all(gradient[pruned].all() for gradient in found), "pruned weights have gradients"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in torch
def test_callback_is_not_called_inside_a_compiled_step(alone):
    torch._dynamo.reset()
    model, heard = net(), []
    watch = BACKEND.watch(model, BACKEND.describe(model), [2], heard.append)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(optimizer.step, backend="eager")
    x, y = data(5, 3)
    for _ in range(3):
        MSE(model(x), y).backward()
        compiled()
    assert watch.steps == 3
    assert list(watch.snapshots) == [2]
    assert not heard
