"""What each torch layer is to ltcore, and that its arrays are read, written and held exactly."""

import copy
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, TicketFileError  # noqa: E402
from ltcore.masks import Masks  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

IMAGE = (2, 4, 6, 7)
SERIES = (2, 5, 6)


def describe(model, *example):
    return detect(model).describe(model, example or None)


def sites_of(model):
    return {site.name: site for site in describe(model).sites}


def image(make):
    """A layer on images with a convolution before it."""
    return lambda: nn.Sequential(nn.Conv2d(4, 6, 1), make())


def recurrent(count, inputs, units, biases=2):
    roles = {"w_ih": (count * units, inputs), "w_hh": (count * units, units)}
    return roles | dict.fromkeys(("b_ih", "b_hh")[:biases], (count * units,))


LSTM = {"direction": "forward", "biases": 2}
BACK = {"direction": "backward", "biases": 2}

# name: (model, example's shape, {site: (kind, part, {role: shape}, some attributes)})
KINDS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 3)), (2, 6),
        {"0": ("linear", "", {"weight": (3, 6), "bias": (3,)}, {})},
    ),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2)), IMAGE,
        {"0": ("conv", "", {"weight": (6, 2, 3, 2), "bias": (6,)},
               {"stride": [2, 1], "dilation": [1, 2], "groups": 2, "padding": [[1, 1], [0, 0]]})},
    ),
    "conv, same": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2))), IMAGE,
        {"0": ("conv", "", {"weight": (6, 4, 4, 3), "bias": (6,)}, {"padding": [[1, 2], [2, 2]]})},
    ),
    "conv, reflected": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect")), (2, 4, 6),
        {"0": ("conv", "", {"weight": (6, 4, 3), "bias": (6,)},
               {"padding": [[1, 1]], "padding_mode": "reflect"})},
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding="valid")), IMAGE,
        {"0": ("depthwise", "", {"weight": (8, 1, 3, 3), "bias": (8,)},
               {"padding": [[0, 0], [0, 0]]})},
    ),
    "conv_transpose": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, (1, 0))), IMAGE,
        {"0": ("conv_transpose", "", {"weight": (4, 6, 3, 3), "bias": (6,)},
               {"padding": [[1, 0], [1, 1]], "output_padding": [1, 0]})},
    ),
    "batchnorm": (
        image(lambda: nn.BatchNorm2d(6, eps=1e-4, momentum=0.2)), IMAGE,
        {"1": ("batchnorm", "", {"weight": (6,), "bias": (6,), "running_mean": (6,),
                                 "running_var": (6,), "num_batches_tracked": ()},
               {"eps": 1e-4, "momentum": 0.2})},
    ),
    "layernorm": (
        image(lambda: nn.LayerNorm((6, 6, 7), eps=1e-4)), IMAGE,
        {"1": ("layernorm", "", {"weight": (6, 6, 7), "bias": (6, 6, 7)}, {"eps": 1e-4})},
    ),
    "groupnorm": (
        image(lambda: nn.GroupNorm(3, 6, eps=1e-4)), IMAGE,
        {"1": ("groupnorm", "", {"weight": (6,), "bias": (6,)}, {"groups": 3, "eps": 1e-4})},
    ),
    "instance norm": (
        image(lambda: nn.InstanceNorm2d(6, affine=True)), IMAGE,
        {"1": ("groupnorm", "", {"weight": (6,), "bias": (6,)}, {"groups": 6, "eps": 1e-5})},
    ),
    "rmsnorm": (
        lambda: nn.Sequential(nn.RMSNorm(6)), SERIES,
        {"0": ("rmsnorm", "", {"weight": (6,)}, {"eps": float(np.finfo(np.float32).eps)})},
    ),
    "prelu": (
        image(lambda: nn.PReLU(6)), IMAGE, {"1": ("prelu", "", {"weight": (6,)}, {})},
    ),
    "rnn": (
        lambda: nn.RNN(6, 4, nonlinearity="relu"), SERIES,
        {"rnn": ("rnn", "", recurrent(1, 6, 4), {"activation": "relu", **LSTM})},
    ),
    "lstm": (
        lambda: nn.Sequential(nn.LSTM(6, 4, bias=False, batch_first=True)), SERIES,
        {"0": ("lstm", "", recurrent(4, 6, 4, 0), {"direction": "forward", "biases": 0})},
    ),
    "lstm, two directions and layers": (
        lambda: nn.LSTM(6, 4, num_layers=2, bidirectional=True), SERIES,
        {
            "l0": ("lstm", "", recurrent(4, 6, 4), LSTM),
            "l0_reverse": ("lstm", "", recurrent(4, 6, 4), BACK),
            "l1": ("lstm", "", recurrent(4, 8, 4), LSTM),
            "l1_reverse": ("lstm", "", recurrent(4, 8, 4), BACK),
        },
    ),
    "gru": (
        lambda: nn.Sequential(nn.GRU(6, 4, num_layers=2)), SERIES,
        {"0.l0": ("gru", "", recurrent(3, 6, 4), LSTM),
         "0.l1": ("gru", "", recurrent(3, 4, 4), LSTM)},
    ),
    "cell": (
        lambda: nn.Sequential(nn.GRUCell(6, 4)), (2, 6),
        {"0": ("gru", "", recurrent(3, 6, 4), LSTM)},
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(6, 2, 9, 0.0, batch_first=True), SERIES,
        {
            **{f"self_attn.{p}": ("linear", p, {"weight": (6, 6), "bias": (6,)}, {"heads": 2})
               for p in "qkv"},
            "self_attn.out_proj": ("linear", "o", {"weight": (6, 6), "bias": (6,)}, {"heads": 2}),
        },
    ),
    "attention, other widths": (
        lambda: nn.MultiheadAttention(6, 3, bias=False, kdim=4, vdim=5), None,
        {
            "q": ("linear", "q", {"weight": (6, 6)}, {"heads": 3}),
            "k": ("linear", "k", {"weight": (6, 4)}, {"heads": 3}),
            "v": ("linear", "v", {"weight": (6, 5)}, {"heads": 3}),
            "out_proj": ("linear", "o", {"weight": (6, 6)}, {"heads": 3}),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_sites_roles_shapes_and_attributes(name):
    build, _, expected = KINDS[name]
    found = sites_of(build())
    for site, (kind, part, roles, attrs) in expected.items():
        assert (found[site].kind, found[site].part) == (kind, part)
        assert {role.name: role.shape for role in found[site].roles} == roles
        assert {key: found[site].attrs[key] for key in attrs} == attrs
        # Only a batch norm's counter is torch's alone; every buffer counts as state.
        for role in found[site].roles:
            assert role.portable == (role.name != "num_batches_tracked")
            assert role.state == (role.name[:7] in ("running", "num_bat"))


def native(model, name):
    """Return the tensor behind a role's native name, looked up without the backend."""
    path, rows = re.fullmatch(r"([^\[]+)(?:\[(\d+):(\d+)\])?", name).group(1, 2), None
    rows = re.search(r"\[(\d+):(\d+)\]$", name)
    tensor = model.state_dict()[path[0]]
    return tensor[int(rows[1]) : int(rows[2])] if rows else tensor


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_arrays_are_written_where_their_native_names_say(name, seed):
    model = KINDS[name][0]()
    backend, structure, rng = detect(model), describe(model), np.random.default_rng(seed)
    values = {}
    for key, _, role in structure.items():
        values[key] = rng.standard_normal(role.shape).astype(role.dtype)
    backend.write(model, structure, values)
    read = backend.read(model, structure)
    for key, _, role in structure.items():
        assert np.array_equal(read[key], values[key])
        assert np.array_equal(native(model, role.native).numpy(), values[key])
    covered = sum(math.prod(role.shape) for _, _, role in structure.items())
    assert covered == sum(tensor.numel() for tensor in model.state_dict().values())


def test_a_part_says_which_rows_it_is():
    model = nn.TransformerEncoderLayer(6, 2, 9)
    natives = {n: role.native for n, _, role in describe(model).items() if "self_attn" in n}
    assert natives == {
        "self_attn.q.weight": "self_attn.in_proj_weight[0:6]",
        "self_attn.q.bias": "self_attn.in_proj_bias[0:6]",
        "self_attn.k.weight": "self_attn.in_proj_weight[6:12]",
        "self_attn.k.bias": "self_attn.in_proj_bias[6:12]",
        "self_attn.v.weight": "self_attn.in_proj_weight[12:18]",
        "self_attn.v.bias": "self_attn.in_proj_bias[12:18]",
        "self_attn.out_proj.weight": "self_attn.out_proj.weight",
        "self_attn.out_proj.bias": "self_attn.out_proj.bias",
    }


# What the roles mean, in numpy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(p, x, h, c):
    i, f, g, o = np.split(x @ p["w_ih"].T + p["b_ih"] + h @ p["w_hh"].T + p["b_hh"], 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(p, x, h, _):
    xr, xz, xn = np.split(x @ p["w_ih"].T + p["b_ih"], 3, -1)
    hr, hz, hn = np.split(h @ p["w_hh"].T + p["b_hh"], 3, -1)
    z = sigmoid(xz + hz)
    return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h, None


def rnn_step(p, x, h, _):
    return np.tanh(x @ p["w_ih"].T + p["b_ih"] + h @ p["w_hh"].T + p["b_hh"]), None


STEPS = {nn.LSTM: lstm_step, nn.GRU: gru_step, nn.RNN: rnn_step}


@pytest.mark.parametrize("cls", STEPS)
def test_recurrent_roles_mean_what_the_format_says(cls):
    torch.manual_seed(0)
    model = cls(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    arrays = detect(model).read(model, describe(model))
    x = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    y = x
    for layer in ("l0", "l1"):
        ways = []
        for site, order in ((layer, slice(None)), (f"{layer}_reverse", slice(None, None, -1))):
            p = {role: arrays[f"{site}.{role}"] for role in ("w_ih", "w_hh", "b_ih", "b_hh")}
            h, c, steps = np.zeros((2, 4)), np.zeros((2, 4)), []
            for t in range(5):
                h, c = STEPS[cls](p, y[:, order][:, t], h, c)
                steps.append(h)
            ways.append(np.stack(steps, 1)[:, order])
        y = np.concatenate(ways, -1)
    assert np.allclose(model(torch.from_numpy(x))[0].detach().numpy(), y, atol=1e-6)


def test_attention_parts_mean_what_the_format_says():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, kdim=4, vdim=5, batch_first=True)
    p = detect(model).read(model, describe(model))
    rng = np.random.default_rng(1)
    query, key, value = (rng.standard_normal((2, 3, n)).astype(np.float32) for n in (6, 4, 5))

    def heads(x, name):  # head h owns rows 3h to 3h + 3
        return (x @ p[f"{name}.weight"].T + p[f"{name}.bias"]).reshape(2, 3, 2, 3)

    q, k, v = heads(query, "q"), heads(key, "k"), heads(value, "v")
    scores = np.exp(np.einsum("nthd,nshd->nhts", q, k) / 3**0.5)
    y = np.einsum("nhts,nshd->nthd", scores / scores.sum(-1, keepdims=True), v).reshape(2, 3, 6)
    y = y @ p["out_proj.weight"].T + p["out_proj.bias"]
    found = model(*map(torch.from_numpy, (query, key, value)))[0]
    assert np.allclose(found.detach().numpy(), y, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_padding_tells_the_size_of_the_output(transposed, data):
    size, kernel = data.draw(st.integers(7, 12)), data.draw(st.integers(1, 4))
    stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    pad = data.draw(st.integers(0, (kernel - 1) // 2 if not transposed else kernel - 1))
    span = dilation * (kernel - 1)
    if transposed:
        extra = data.draw(st.integers(0, max(stride, dilation) - 1))
        model = nn.ConvTranspose1d(1, 1, kernel, stride, pad, extra, dilation=dilation)
    else:
        same = stride == 1 and data.draw(st.booleans())
        model = nn.Conv1d(1, 1, kernel, stride, "same" if same else pad, dilation)
    [(low, high)] = sites_of(model)[type(model).__name__.lower()].attrs["padding"]
    if transposed:
        expected = (size - 1) * stride + span + 1 - low - high
    else:
        expected = (size + low + high - span - 1) // stride + 1
    assert model(torch.zeros(1, 1, size)).shape[2] == expected


# Holding.

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
}


def loss_of(model, x):
    y = model(x, x, x) if isinstance(model, nn.MultiheadAttention) else model(x)
    y = y[0] if isinstance(y, tuple) else y
    return (y - 0.3).square().mean()


def train(model, optimizer, x, n=4, before=None, after=None):
    for _ in range(n):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        if before:
            before()
        optimizer.step()
        if after:
            after()


def random_masks(structure, names, seed=0):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(structure.shapes[name]) < 0.6 for name in names}
    for mask in masks.values():
        mask.flat[0] = True  # something is left to train
    return Masks(masks)


def dense_masks(model, structure, masks):
    """Return ``{native name: mask of the whole tensor}``, made without the backend."""
    whole = {n: torch.ones_like(t, dtype=torch.bool) for n, t in model.named_parameters()}
    for name, mask in masks.items():
        view = structure.by_name[name][1].native
        target = whole[view.partition("[")[0]]
        rows = re.search(r"\[(\d+):(\d+)\]$", view)
        target[slice(*map(int, rows.groups())) if rows else ...] = torch.from_numpy(mask.copy())
    return whole


HELD = {
    name: (build, shape)
    for name, (build, shape, _) in KINDS.items()
    if shape and name not in ("conv, reflected",)
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", HELD)
def test_held_training_is_training_with_masks_by_hand(name, optimizer):
    build, shape = HELD[name]
    torch.manual_seed(0)
    model = build().train()
    reference, x = copy.deepcopy(model), torch.randn(shape)
    before = {key: param.detach().clone() for key, param in model.named_parameters()}
    backend, structure = detect(model), describe(model)
    masks = random_masks(structure, [info.name for info in structure.infos])
    whole = dense_masks(model, structure, masks)
    handle = backend.hold(model, structure, masks)
    train(model, OPTIMIZERS[optimizer](model.parameters()), x)

    params = dict(reference.named_parameters())

    def zero(of):
        for key, param in params.items():
            if (tensor := of(param)) is not None:
                tensor.data[~whole[key]] = 0

    zero(lambda p: p)
    train(
        reference, OPTIMIZERS[optimizer](reference.parameters()), x,
        before=lambda: zero(lambda p: p.grad), after=lambda: zero(lambda p: p),
    )  # fmt: skip
    for key, param in model.named_parameters():
        assert torch.equal(param, params[key]), key
        assert not torch.signbit(param[~whole[key]]).any()
        assert (param != before[key])[whole[key]].any()
    handle.release()


PARTS = [f"self_attn.{part}.weight" for part in "qkv"]


@pytest.mark.parametrize("held", [PARTS[:1], PARTS[1:], PARTS, [*PARTS, "self_attn.v.bias"]])
def test_parts_of_one_tensor_are_masked_apart(held):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True)
    backend, structure = detect(model), describe(model)
    masks = random_masks(structure, held)
    whole = dense_masks(model, structure, masks)["self_attn.in_proj_weight"]
    before = model.self_attn.in_proj_weight.detach().clone()
    optimizer, x = torch.optim.Adam(model.parameters(), lr=0.01), torch.randn(2, 5, 6)
    train(model, optimizer, x, n=1)
    handle = backend.hold(model, structure, masks)
    train(model, optimizer, x)
    weight = model.self_attn.in_proj_weight
    assert not weight[~whole].any()
    assert (weight != before)[whole].all(), "a weight that is not pruned stood still"
    for slot in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[weight][slot]
        assert not state[~whole].any()
        assert state[whole].all()
    assert not weight.grad[~whole].any()
    assert weight.grad[whole].all()

    other = random_masks(structure, held, seed=1)
    handle.update(other)
    whole = dense_masks(model, structure, other)["self_attn.in_proj_weight"]
    train(model, optimizer, x)
    assert torch.equal(weight != 0, whole)
    handle.release()
    train(model, optimizer, x, n=1)
    assert weight.all()


def test_two_forwards_before_one_backward_with_several_parts():
    """Masks are written only where someone changed the weights: autograd saw them already."""
    model = nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True)
    backend, structure = detect(model), describe(model)
    handle = backend.hold(model, structure, random_masks(structure, PARTS))
    x = torch.randn(2, 5, 6)
    (model(x).sum() + model(x + 1).sum()).backward()
    with torch.no_grad():
        model.self_attn.in_proj_weight.fill_(1.0)
    model(x)
    assert not model.self_attn.in_proj_weight.all()
    handle.release()


def test_a_part_that_is_written_to_is_masked_at_the_next_forward():
    model = nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True)
    backend, structure = detect(model), describe(model)
    masks = random_masks(structure, PARTS)
    handle = backend.hold(model, structure, masks)
    backend.write(model, structure, {PARTS[1]: np.ones((6, 6), np.float32)})
    model(torch.randn(2, 5, 6))
    assert np.array_equal(backend.read(model, structure)[PARTS[1]], masks[PARTS[1]])
    handle.release()


def test_a_hold_of_parts_does_not_keep_the_model_alive():
    import gc
    import weakref

    model = nn.MultiheadAttention(6, 2)
    handle = detect(model).hold(model, describe(model), random_masks(describe(model), ["q.weight"]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    handle.enforce()
    handle.release()


def test_recurrent_layers_compute_with_what_was_written_and_held():
    """torch keeps a second list of a recurrent layer's weights."""
    model = nn.LSTM(3, 4, batch_first=True)
    backend, structure = detect(model), describe(model)
    values = {n: np.full(s, 0.1, np.float32) for n, s in structure.shapes.items()}
    backend.write(model, structure, values)
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    hold = lt.prune(model, sparsity=0.5)
    assert list(hold.masks) == ["lstm.w_ih", "lstm.w_hh"]
    fresh = nn.LSTM(3, 4, batch_first=True)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(model(x)[0], fresh(x)[0])


# Gradients and fresh weights.


def test_gradients_of_parts_are_rows_of_the_whole():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True).eval()
    x, y = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    backend, structure = detect(model), describe(model)
    found = backend.gradients(model, structure, [(x, y)], nn.functional.mse_loss)
    nn.functional.mse_loss(model(x), y).backward()
    whole = dict(model.named_parameters())
    for name, _, role in structure.items():
        target = whole[role.native.partition("[")[0]].grad
        rows = re.search(r"\[(\d+):(\d+)\]$", role.native)
        target = target[slice(*map(int, rows.groups()))] if rows else target
        assert np.allclose(found[name], target.numpy(), atol=1e-7), name


def test_integer_parameters_have_gradients_of_zero():
    model = nn.Sequential(nn.Linear(3, 2))
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    found = detect(model).gradients(
        model, describe(model), [(torch.ones(1, 3), torch.ones(1, 2))], nn.functional.mse_loss
    )
    assert not found["sequential.table"].any()
    assert found["0.weight"].any()


def test_attention_is_drawn_anew_as_torch_draws_it():
    model = nn.TransformerEncoderLayer(64, 2, 9)
    backend, structure = detect(model), describe(model)
    before = copy.deepcopy(model.state_dict())
    drawn = backend.redraw(model, structure, seed=3)
    again = backend.redraw(model, structure, seed=3)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    bound = (6 / (64 + 3 * 64)) ** 0.5  # Xavier's, over the three projections as one
    for part in "qkv":
        assert 0.9 * bound < np.abs(drawn[f"self_attn.{part}.weight"]).max() <= bound
        assert not drawn[f"self_attn.{part}.bias"].any()
    assert not drawn["self_attn.out_proj.bias"].any(), "the attention has the last word on it"
    assert drawn["linear1.bias"].any()


def test_a_whole_transformer_and_recurrent_layers_are_drawn_anew():
    for model in (
        nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        nn.GRU(3, 4, 2),
        nn.LSTMCell(3, 4),
    ):
        structure = describe(model)
        drawn = detect(model).redraw(model, structure, seed=0)
        assert drawn.keys() == structure.shapes.keys()


# What is of no portable kind, and why.


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.scale = nn.Parameter(torch.ones(4))


def reparametrized_projection():
    model = nn.MultiheadAttention(4, 2)
    nn.utils.parametrizations.weight_norm(model.out_proj)
    return model


RAW = {
    "proj_size": (lambda: nn.LSTM(3, 4, proj_size=2), "proj_size"),
    "add_bias_kv": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv"),
    "add_zero_attn": (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn"),
    "max_norm": (lambda: nn.Embedding(3, 4, max_norm=1.0), "max_norm rescales its weights"),
    "no statistics": (
        lambda: nn.BatchNorm1d(4, track_running_stats=False), "without running statistics"
    ),
    "statistics": (
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), "keeps running"
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "weight is computed"
    ),
    "projection": (reparametrized_projection, "weight is computed from other arrays"),
    "own arrays": (Scaled, "a Scaled with arrays of its own: scale"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), r"arrays are of torch\.complex64"),
    "float8": (
        lambda: nn.Linear(4, 4).to(torch.float8_e4m3fn), r"arrays are of torch\.float8_e4m3fn"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_what_has_no_twin_is_raw_and_says_why(name):
    build, reason = RAW[name]
    raw = [site for site in describe(build()).sites if site.kind == "raw"]
    assert re.search(reason, raw[0].attrs["reason"])
    assert raw[0].matched


def test_constants_of_unknown_layers_are_no_obstacle():
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("positions", torch.arange(4))
    structure = describe(model, torch.ones(2, 4))
    assert [(site.kind, site.matched) for site in structure.sites] == [
        ("raw", False),
        ("linear", True),
    ]
    assert not structure.why_not_portable()


def test_complex_weights_are_neither_held_nor_saved(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64))
    assert list(lt.prune(model, sparsity=0.5).masks) == ["0.weight"]
    lt.held(model).release()
    with pytest.raises(CapabilityError, match=r"1\.weight.*torch\.complex64"):
        lt.prune(model, sparsity=0.5, prunable=["1.weight"], criterion="random")
    lt.prune(model, sparsity=0.5)
    with pytest.raises(TicketFileError, match=r"'1\.weight' is complex64"):
        lt.Ticket.from_model(model).save(tmp_path / "t")


def test_float8_weights_are_kept_exactly(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float8_e4m3fn))
    lt.prune(model, sparsity=0.5)
    lt.Ticket.from_model(model).save(tmp_path / "t")
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float8_e4m3fn))
    lt.load(tmp_path / "t").apply(other)
    expected, found = (m[1].weight.view(torch.uint8) for m in (model, other))
    assert torch.equal(expected, found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_arrays_that_numpy_lacks_are_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("quantized", torch.ones(2, 2).to_sparse())
    with pytest.raises(CapabilityError, match=r"'sequential\.quantized'.*cannot be read"):
        detect(model).read(model, describe(model))


# Shared arrays.


def test_a_layer_whose_arrays_are_all_shared_is_no_site():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    structure = describe(Language())
    assert [site.name for site in structure.sites] == ["embedding"]
    assert structure.by_name["embedding.weight"][1].aliases == ("head.weight",)


def test_attentions_that_share_a_projection_are_one_in_it():
    first, second = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    second.in_proj_weight = first.in_proj_weight
    structure = describe(nn.ModuleList([first, second]))
    roles = {name: role for name, _, role in structure.items()}
    assert roles["0.k.weight"].aliases == ("1.in_proj_weight[4:8]",)
    assert "1.k.weight" not in roles
    assert "1.k.bias" in roles


def test_fused_layers_and_their_parts_agree():
    """torch has one kernel for a whole encoder layer in eval mode; a probe sees either."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    x = torch.randn(3, 7, 32)
    model.eval()
    with torch.no_grad():
        fused = model(x)
    assert torch.backends.mha.get_fastpath_enabled()
    [plain] = detect(model).forward(model, describe(model), [x.numpy()])
    assert torch.backends.mha.get_fastpath_enabled()
    assert np.abs(fused.numpy() - plain).max() < 3e-5 * np.abs(plain).max()


def test_a_padding_mask_hides_keys_and_leaves_results():
    """The fused kernel answers zeros for hidden positions, which no training does."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x, hidden):
            return self.encoder(x, src_key_padding_mask=hidden)

    model = Masked()
    hidden = torch.tensor([[False, False, True, True]])
    structure = describe(model, torch.randn(1, 4, 8), hidden)
    [found] = detect(model).forward(
        model, structure, [np.ones((1, 4, 8), np.float32), hidden.numpy()]
    )
    assert found[0, 3].any()
    assert "encoder.layers.0.self_attn.out_proj" in {s.name for s in structure.sites if s.preds}
