"""Weights of every float dtype are carried to the bit; mixed precision is proved as it computes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from torch import nn  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import LtcoreError  # noqa: E402

L = keras.layers
DTYPES = ("float64", "float32", "float16", "bfloat16")
X = np.random.default_rng(0).standard_normal((9, 6, 6, 2))


def torch_net(dtype="float32"):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return model.to(getattr(torch, dtype))


def keras_net(dtype="float32", epsilon=1e-5):
    with_dtype = {"dtype": dtype}
    return keras.Sequential([
        L.Input((6, 6, 2), dtype="float32"), L.Conv2D(4, 3, **with_dtype),
        L.BatchNormalization(epsilon=epsilon, momentum=0.9, **with_dtype),
        L.ReLU(**with_dtype), L.Flatten(**with_dtype), L.Dense(3, **with_dtype),
    ])  # fmt: skip


def torch_example(dtype):
    return torch.from_numpy(X[:1].transpose(0, 3, 1, 2).copy()).to(getattr(torch, dtype))


def ticket_of(model, example=None):
    hold = lt.prune(model, sparsity=0.5, example=example)
    ticket = lt.Ticket.from_model(model, example=example)
    hold.release()
    assert ticket.probe is not None
    return ticket


def bits(model):
    """Return the bytes of every parameter and buffer, whatever its dtype."""
    if isinstance(model, keras.Model):
        return [np.ascontiguousarray(np.asarray(w)).tobytes()
                for w in model.weights]  # fmt: skip
    return [
        t.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for n, t in model.state_dict().items()
        if t.dim()
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_is_the_same_to_the_bit(dtype, tmp_path):
    torch.manual_seed(0)
    source = torch_net(dtype)
    ticket = ticket_of(source, torch_example(dtype))
    ticket.save(tmp_path / "there")
    twin = keras_net(dtype)
    lt.load(tmp_path / "there").apply(twin)
    assert {str(w.dtype) for w in twin.weights} <= {dtype, "float32"}
    lt.Ticket.from_model(twin).save(tmp_path / "back")
    other = torch_net(dtype)
    lt.load(tmp_path / "back").apply(other, example=torch_example(dtype))
    assert bits(other) == bits(source)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_compared_as_it_computes(policy):
    torch.manual_seed(0)
    ticket = ticket_of(torch_net(), torch_example("float32"))
    twin = keras_net(policy)
    with pytest.raises(LtcoreError, match="do not compute"):
        ticket.apply(keras_net(policy, epsilon=10.0))
    ticket.apply(twin)
    kernel = np.asarray(twin.layers[0].kernel)
    assert kernel.dtype == np.float32
    assert np.array_equal(np.moveaxis(kernel, (-1, -2), (0, 1)), ticket.weights()["0.weight"])
    back = ticket_of(twin)
    other = torch_net()
    back.apply(other, example=torch_example("float32"))
    assert torch.equal(other[0].weight, torch.from_numpy(back.weights()["conv2d.weight"]))


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_complex_weights_are_refused_by_name():
    with pytest.raises(LtcoreError, match="complex64"):
        lt.prune(nn.Linear(6, 3, dtype=torch.complex64), sparsity=0.5, prunable=["*weight"])


def test_float8_weights_stay_in_their_framework_to_the_bit(tmp_path):
    model, other = (nn.Linear(6, 3).to(torch.float8_e4m3fn) for _ in range(2))
    lt.prune(model, sparsity=0.5, prunable=["*weight"])
    ticket = lt.Ticket.from_model(model)
    ticket.save(tmp_path / "t")
    lt.load(tmp_path / "t").apply(other)
    assert bits(other) == bits(model)
    assert "float8_e4m3fn" in ticket.structure.sites[0].attrs["reason"]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_quantized_layer_stays_in_its_framework_and_says_why():
    model = keras.Sequential([L.Input((6,)), L.Dense(5), L.Dense(3)])
    model.layers[0].quantize("int8")
    structure = lt.prune(model, sparsity=0.5).structure
    assert "quantized" in structure.why_not_portable() or "int8" in structure.why_not_portable()
