"""What the torch trace says of axes and of the graph, against what really happens to them."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.layouts import SEAM, UNKNOWN_GROUP, canonical_index  # noqa: E402
from ltcore.plugins import detect  # noqa: E402


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def structure_of(model, *inputs):
    return detect(model).describe(model, inputs)


def sites_of(model, *inputs):
    return {site.name: site for site in structure_of(model, *inputs).sites}


# Orders of features, against index tensors that go the same way.

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@st.composite
def moves(draw, cutting):
    """A chain of operations that only move entries of one example, as functions of a tensor."""
    chain = []
    for _ in range(draw(st.integers(0, 3))):
        kinds = ["permute", "join", "unsqueeze"] + (["cut"] if cutting else [])
        chain.append((draw(st.sampled_from(kinds)), draw(st.randoms(use_true_random=False))))
    return chain


def moved(x, chain):
    for kind, random in chain:
        state = random.getstate()
        axes = list(range(1, x.dim()))
        if kind == "permute":
            random.shuffle(axes)
            x = x.permute(0, *axes)
        elif kind == "join" and len(axes) > 2:
            at = random.choice(axes[:-1])
            x = x.flatten(at, at + 1)
        elif kind == "unsqueeze":
            x = x.unsqueeze(random.choice(axes))
        elif kind == "cut":
            at = random.choice(axes)
            parts = [n for n in range(2, x.shape[at]) if x.shape[at] % n == 0]
            if parts:
                x = x.unflatten(at, (random.choice(parts), -1))
        random.setstate(state)  # the same way for the next tensor
    return x


@pytest.mark.parametrize("cutting", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_order_behind_a_flatten_is_right_or_unknown(cutting, data):
    sizes, chain = data.draw(SIZES), data.draw(moves(cutting))
    count = int(np.prod(sizes))
    model = Net(
        lambda net, x: net.fc(moved(net.conv(x), chain).reshape(len(x), -1)),
        conv=nn.Conv2d(1, sizes[0], 1), fc=nn.Linear(count, 2),
    )  # fmt: skip
    group = sites_of(model, torch.randn(2, 1, *sizes[1:]))["fc"].in_group
    # Numbered channels first: canonical order is 0, 1, 2, ...
    native = moved(torch.arange(count).reshape(1, *sizes), chain).reshape(-1).numpy()
    if group is None:
        assert sizes[0] == 1 or sizes[1] * sizes[2] == 1, "channels and space were mixed"
    elif group == UNKNOWN_GROUP:
        assert cutting
    else:
        assert np.array_equal(native[canonical_index(group)], np.arange(count))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_order_before_an_image_is_right_or_unknown(data):
    sizes, order = data.draw(SIZES), data.draw(st.permutations(range(3)))
    count = int(np.prod(sizes))
    back = [1 + order.index(axis) for axis in range(3)]

    def as_image(x):
        return x.reshape(len(x), *(sizes[axis] for axis in order)).permute(0, *back)

    model = Net(
        lambda net, x: net.conv(as_image(net.fc(x).relu())).mean((2, 3)),
        fc=nn.Linear(2, count), conv=nn.Conv2d(sizes[0], 1, 1),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 2))
    group = sites["fc"].out_group
    # Where each place of the image, channels first, comes from among the dense layer's features.
    source = as_image(torch.arange(count)[None]).reshape(-1).numpy()
    assert sites["conv"].in_group is None
    if sizes[0] == 1 or sizes[1] * sizes[2] == 1:
        assert group is None
    else:
        assert np.array_equal(canonical_index(group), source)


# What happens between a convolution on (N, 6, 4, 8) and a dense layer behind a flatten.
IMAGE = (("C", 6), ("S0", 4), ("S1", 8))
KEPT = {
    "elementwise": (lambda x: (x.exp() + x.sigmoid() * 2 - x.clamp(0, 1)).log1p(), IMAGE),
    "in place": (lambda x: x.mul(2).relu_().add_(1), IMAGE),
    "a constant": (lambda x: x * torch.ones(8) + torch.ones(1, 6, 1, 1), IMAGE),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros(())), IMAGE),
    "masked": (lambda x: x.masked_fill(x > 0, 0.0), IMAGE),
    "softmax": (lambda x: x.softmax(1), IMAGE),
    "pool": (lambda x: F.max_pool2d(x, 2), (("C", 6), ("S0", 2), ("S1", 4))),
    "mean pool": (lambda x: F.avg_pool2d(x, (1, 2)), (("C", 6), ("S0", 4), ("S1", 4))),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (("C", 6), ("S0", 2), ("S1", 3))),
    "pad": (lambda x: F.pad(x, (1, 1)), (("C", 6), ("S0", 4), ("S1", 10))),
    "reflect": (lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect"),
                (("C", 6), ("S0", 4), ("S1", 10))),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
                 (("C", 6), ("S0", 6), ("S1", 10))),
    "resize": (lambda x: F.interpolate(x, scale_factor=2), (("C", 6), ("S0", 8), ("S1", 16))),
    "bilinear": (lambda x: F.interpolate(x, size=(2, 3), mode="bilinear"),
                 (("C", 6), ("S0", 2), ("S1", 3))),
    "crop": (lambda x: x[:, :, 1:3, ::2], (("C", 6), ("S0", 2), ("S1", 4))),
    "channels": (lambda x: x[:, :4], (("C", 4), ("S0", 4), ("S1", 8))),
    "split": (lambda x: torch.split(x, 2, dim=1)[1], (("C", 2), ("S0", 4), ("S1", 8))),
    "chunk": (lambda x: x.chunk(2, dim=2)[0], (("C", 6), ("S0", 2), ("S1", 8))),
    "row": (lambda x: x[:, :, 0], (("C", 6), ("S1", 8))),
    "rows": (lambda x: x.unbind(2)[1], (("C", 6), ("S1", 8))),
    "mean of rows": (lambda x: x.mean(2), (("C", 6), ("S1", 8))),
    "largest of rows": (lambda x: x.max(2).values, (("C", 6), ("S1", 8))),
    "mean, kept": (lambda x: x.mean(2, keepdim=True), (("C", 6), ("S1", 8))),
    "channels twice": (lambda x: torch.cat([x, x.relu()], 1),
                       (("C", 12), ("S0", 4), ("S1", 8))),
    "flattened, then joined": (lambda x: torch.cat([x.flatten(1), x.mean((2, 3))], 1),
                               (*IMAGE, SEAM, ("F", 6))),
    "stacked and summed": (lambda x: torch.stack([x, x]).sum(0), IMAGE),
    "squeeze, excite": (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), IMAGE),
    "expanded": (lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x), IMAGE),
    "swapped": (lambda x: x.swapaxes(1, 2).movedim(3, 1), (("S1", 8), ("S0", 4), ("C", 6))),
    "space flipped": (lambda x: x.flip(3).roll(1, 2), IMAGE),
    "space picked": (lambda x: x.index_select(2, torch.tensor([3, 1])),
                     (("C", 6), ("S0", 2), ("S1", 8))),
    "pixels to channels": (lambda x: F.pixel_unshuffle(x, 2),
                           (("C", 24), ("S0", 2), ("S1", 4))),
    "channels last in memory": (
        lambda x: x.contiguous(memory_format=torch.channels_last), IMAGE
    ),
    "to half and back": (lambda x: x.half().float(), IMAGE),
    "cumulative": (lambda x: x.cumsum(3), IMAGE),
    "einsum": (lambda x: torch.einsum("nchw,nchw->nchw", x, x), IMAGE),
    "attention map": (lambda x: x * torch.einsum("nchw->nhw", x).unsqueeze(1), IMAGE),
    "channel attention": (
        lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2), IMAGE
    ),
    "instance norm": (lambda x: F.instance_norm(x), IMAGE),
    "layer norm": (lambda x: F.layer_norm(x, (8,)), IMAGE),
    "group norm": (lambda x: F.group_norm(x, 2), IMAGE),
    "local response": (lambda x: F.local_response_norm(x, 3), IMAGE),
    "written into": (lambda x: _written(x), IMAGE),
    "dropout": (lambda x: F.dropout(x, training=False), IMAGE),
}  # fmt: skip
UNKNOWN = {
    "channels flipped": lambda x: x.flip(1),
    "a random gather": lambda x: x.flatten(2).gather(2, torch.zeros(2, 6, 4, dtype=int)).sort(1)[0],
    "channel pieces apart": lambda x: x.unflatten(1, (2, 3)).permute(0, 2, 3, 1, 4),
    "flattened, then cut": lambda x: x.flatten(1)[:, :100],
    "flattened, joined, cut": lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1)[:, 9:],
    "flattened, then sorted": lambda x: x.flatten(1).sort().values,
    "flattened and turned": lambda x: x.flatten(1) + x.permute(0, 2, 3, 1).flatten(1),
    "written into, turned": lambda x: _written_turned(x),
    "fft": lambda x: torch.fft.fft(x).real,
}


def _written(x):
    y = torch.zeros(2, 6, 4, 8)
    y[:, :3] = x[:, 3:]
    return y


def _written_turned(x):
    y = torch.zeros(2, 8, 6, 4)
    y.permute(0, 2, 3, 1)[:, :3] = x[:, 3:]
    return y


def between(function):
    model = Net(
        lambda net, x: net.fc(function(net.conv(x)).reshape(len(x), -1)),
        conv=nn.Conv2d(2, 6, 1), fc=nn.LazyLinear(3),
    )  # fmt: skip
    return sites_of(model, torch.randn(2, 2, 4, 8))["fc"]


@pytest.mark.parametrize("name", KEPT)
def test_operations_whose_axes_are_known(name):
    function, group = KEPT[name]
    site = between(function)
    assert site.in_group == group
    assert site.preds == ("conv",)


@pytest.mark.parametrize("name", UNKNOWN)
def test_operations_that_nobody_follows_are_unknown_not_guessed(name):
    site = between(UNKNOWN[name])
    assert site.in_group == UNKNOWN_GROUP
    assert site.preds == ("conv",)


# Dense features that become images.


@pytest.mark.parametrize("norm", [False, True])
def test_a_generator(norm):
    model = nn.Sequential(
        nn.Linear(3, 48), nn.BatchNorm1d(48) if norm else nn.Identity(), nn.ReLU(),
        nn.Unflatten(1, (12, 2, 2)), nn.ConvTranspose2d(12, 3, 2, 2),
    )  # fmt: skip
    structure = structure_of(model, torch.randn(2, 3))
    sites = {site.name: site for site in structure.sites}
    group = (("C", 12), ("S0", 2), ("S1", 2))
    assert sites["0"].out_group == group
    assert not norm or sites["1"].in_group == group
    assert sites["4"].in_group is None
    assert not structure.why_not_portable()


def test_images_straight_from_a_dense_layer_are_outputs_with_axes():
    model = nn.Sequential(nn.Linear(3, 48), nn.Unflatten(1, (3, 4, 4)))
    structure = structure_of(model, torch.randn(2, 3))
    assert structure.sites[0].out_group == (("C", 3), ("S0", 4), ("S1", 4))
    assert structure.outputs[0].axes == ("N", "C", "S0", "S1")


def test_features_that_two_orders_claim_are_unknown():
    model = Net(
        lambda net, x: net.a(net.fc(x).view(-1, 4, 2, 2)) + net.b(net.fc(x).view(-1, 2, 2, 4)),
        fc=nn.Linear(3, 16), a=nn.Conv2d(4, 1, 1), b=nn.Conv2d(2, 1, (1, 3)),
    )  # fmt: skip
    assert sites_of(model, torch.randn(2, 3))["fc"].out_group == UNKNOWN_GROUP


def test_features_that_meet_others_and_become_an_image_are_unknown():
    model = Net(
        lambda net, x: (net.conv(net.fc(x).view(-1, 4, 2, 2)), net.fc(x)[:, :8]),
        fc=nn.Linear(3, 16), conv=nn.Conv2d(4, 1, 1),
    )  # fmt: skip
    assert sites_of(model, torch.randn(2, 3))["fc"].out_group == UNKNOWN_GROUP


def test_an_input_of_features_that_become_an_image_is_not_portable():
    model = Net(lambda net, x: net.conv(x.view(-1, 3, 2, 2)), conv=nn.Conv2d(3, 1, 1))
    assert "input 0 is one axis of features" in structure_of(model, torch.randn(2, 12)).untraced
    grey = Net(lambda net, x: net.conv(x.view(-1, 1, 4, 4)), conv=nn.Conv2d(1, 2, 1))
    assert not structure_of(grey, torch.randn(2, 16)).why_not_portable()


def test_groups_and_norms_that_see_the_order_of_flattened_channels_are_unknown():
    for layer in (nn.GroupNorm(2, 12), nn.Conv1d(12, 12, 1, groups=2), nn.Conv1d(12, 12, 1, groups=12)):  # fmt: skip  # noqa: E501
        model = Net(
            lambda net, x: net.layer(net.conv(x).flatten(1)[..., None]),
            conv=nn.Conv2d(2, 3, 1), layer=layer,
        )  # fmt: skip
        assert sites_of(model, torch.randn(2, 2, 2, 2))["layer"].in_group == UNKNOWN_GROUP


def test_a_layer_norm_over_an_image_knows_its_axes_and_over_others_does_not():
    model = Net(
        lambda net, x: net.norm(net.conv(x)), conv=nn.Conv2d(2, 3, 1), norm=nn.LayerNorm((3, 2, 4))
    )
    assert sites_of(model, torch.randn(2, 2, 2, 4))["norm"].in_group is None
    last = Net(
        lambda net, x: net.norm(net.conv(x).permute(0, 2, 3, 1)),
        conv=nn.Conv2d(2, 3, 1), norm=nn.LayerNorm((2, 4, 3)),
    )  # fmt: skip
    assert sites_of(last, torch.randn(2, 2, 2, 4))["norm"].in_group == UNKNOWN_GROUP


def test_a_subclass_that_moves_axes_is_looked_into():
    class Norm(nn.LayerNorm):
        """As vision models have it: over channels."""

        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    model = Net(
        lambda net, x: net.fc(net.norm(net.conv(x)).flatten(1)),
        conv=nn.Conv2d(2, 3, 1), norm=Norm(3), fc=nn.Linear(60, 2),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 2, 4, 5))
    assert (sites["norm"].preds, sites["norm"].in_group) == (("conv",), None)
    assert sites["fc"].in_group == (("C", 3), ("S0", 4), ("S1", 5))
    assert sites["fc"].preds == ("norm",)


def test_a_subclass_whose_input_fits_is_taken_for_its_base():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (0, 1, 0, 1)))

    class Scaled(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * 2, self.bias)

    model = nn.Sequential(Padded(2, 3, 2), nn.Flatten(), Scaled(60, 4))
    sites = sites_of(model, torch.randn(2, 2, 4, 5))
    assert sites["2"].in_group == (("C", 3), ("S0", 4), ("S1", 5))
    assert sites["2"].preds == ("0",)


def test_composed_layers_with_a_forward_of_their_own_are_looked_into():
    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False)[0]

    class Memory(nn.GRU):
        def forward(self, x, length):
            return super().forward(x[:, :length])[0]

    model = Net(
        lambda net, x: net.out(net.memory(net.attention(net.fc(x)), 3)), fc=nn.Linear(3, 6),
        attention=Attention(6, 2, batch_first=True), memory=Memory(6, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 5, 3))
    assert sites["attention.q"].preds == sites["attention.v"].preds == ("fc",)
    assert sites["out"].preds == ("memory",)


def test_a_layer_that_failed_and_was_done_without():
    def run(net, x):
        try:
            x = net.a(x)
        except RuntimeError:
            x = net.b(x)
        return net.out(x)

    model = Net(run, a=nn.Linear(3, 4), b=nn.Linear(5, 4), out=nn.Linear(4, 2))
    sites = sites_of(model, torch.randn(2, 5))
    assert {name: site.preds for name, site in sites.items()} == {
        "a": None, "b": (), "out": ("b",)
    }  # fmt: skip


def test_compiled_layers_inside_a_model_are_seen():
    model = nn.Sequential(nn.Linear(3, 4), torch.compile(nn.Linear(4, 4), backend="eager"))
    sites = sites_of(model, torch.randn(2, 3))
    assert sites["1"].preds == ("0",)


def test_one_example_is_a_batch():
    model = Net(
        lambda net, x: net.out(x.flatten(0, 1)).view(len(x), -1, 2), out=nn.Linear(3, 2)
    )  # fmt: skip
    for batch in (1, 2):
        structure = structure_of(model, torch.randn(batch, 5, 3))
        assert structure.outputs[0].axes[0] == "N"


# Attention.


def heads(x):
    return x.view(len(x), 5, 2, 3).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(len(x), 5, 6)


def by_matmul(net, x):
    q, k, v = heads(net.q(x)), heads(net.k(x)), heads(net.v(x))
    return net.o(joined((q @ k.transpose(-1, -2) / 3**0.5).softmax(-1) @ v))


def by_function(net, x):
    return net.o(joined(F.scaled_dot_product_attention(*(heads(f(x)) for f in (net.q, net.k, net.v)))))  # fmt: skip  # noqa: E501


def by_einsum(net, x):
    q, k, v = (f(x).view(len(x), 5, 2, 3) for f in (net.q, net.k, net.v))
    scores = torch.einsum("nthd,nshd->nhts", q, k) + torch.full((5, 5), -1e9).triu(1)
    return net.o(torch.einsum("nhts,nshd->nthd", scores.softmax(-1), v).flatten(2))


def by_bmm(net, x):
    q, k, v = (heads(f(x)).reshape(-1, 5, 3) for f in (net.q, net.k, net.v))
    scores = torch.baddbmm(torch.zeros(1, 5, 5), q, k.mT, alpha=3**-0.5)
    return net.o(joined((scores.softmax(-1) @ v).view(-1, 2, 5, 3)))


@pytest.mark.parametrize("run", [by_matmul, by_function, by_einsum, by_bmm])
def test_attention_written_out(run):
    model = Net(run, **{name: nn.Linear(6, 6) for name in "qkvo"})
    structure = structure_of(model, torch.randn(2, 5, 6))
    sites = {site.name: site for site in structure.sites}
    assert sites["o"].preds == ("q", "k", "v")
    assert all(site.in_group is None and site.out_group is None for site in structure.sites)
    assert structure.outputs[0].axes == ("N", "T", "F")
    assert not structure.why_not_portable()


@pytest.mark.parametrize("cut", ["chunk", "unbind"])
def test_attention_with_one_projection_for_all(cut):
    def run(net, x):
        if cut == "chunk":
            q, k, v = map(heads, net.qkv(x).chunk(3, dim=-1))
        else:
            q, k, v = net.qkv(x).reshape(len(x), 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return net.o(joined(F.scaled_dot_product_attention(q, k, v)))

    model = Net(run, qkv=nn.Linear(6, 18), o=nn.Linear(6, 6))
    assert not structure_of(model, torch.randn(2, 5, 6)).why_not_portable()


def test_queries_that_share_keys():
    def run(net, x):
        q, k, v = heads(net.q(x)), net.k(x)[:, None], net.v(x)[:, None]
        if net.expand:
            k, v = (one.expand(-1, 2, -1, -1).reshape(-1, 2, 5, 3) for one in (k, v))
        return net.o(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=not net.expand)))

    for expand in (False, True):
        model = Net(run, q=nn.Linear(6, 6), k=nn.Linear(6, 3), v=nn.Linear(6, 3), o=nn.Linear(6, 6))
        model.expand = expand
        assert not structure_of(model, torch.randn(2, 5, 6)).why_not_portable()


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_layers_count_as_four_sites(batch_first):
    model = Net(
        lambda net, x, y: net.a(net.f(x), value=net.g(y), key=net.h(y), need_weights=True),
        a=nn.MultiheadAttention(6, 2, batch_first=batch_first),
        f=nn.Linear(6, 6), g=nn.Linear(6, 6), h=nn.Linear(6, 6),
    )  # fmt: skip
    structure = structure_of(model, torch.randn(3, 3, 6), torch.randn(3, 3, 6))
    preds = {site.name: site.preds for site in structure.sites}
    assert preds == {
        "f": (), "g": (), "h": (),
        "a.q": ("f",), "a.k": ("h",), "a.v": ("g",), "a.out_proj": ("a.q", "a.k", "a.v"),
    }  # fmt: skip
    ends = {site.name for site in structure.sites if site.is_output}
    assert ends == {"a.q", "a.k", "a.out_proj"}, "the weights of attention are an output too"
    assert not structure.why_not_portable()


@pytest.mark.parametrize("first", [False, True])
def test_encoder_layers_are_seen_whole(first):
    """The fused path of torch would hide what is inside."""
    layer = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True, norm_first=first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    sites = sites_of(model.eval(), torch.randn(2, 5, 6))
    after = "layers.0.linear2" if first else "layers.0.norm2"
    parts = ("q", "k", "v")
    assert after in sites[f"layers.1.{'norm1' if first else 'self_attn.q'}"].preds
    assert sites["layers.1.self_attn.out_proj"].preds == tuple(
        f"layers.1.self_attn.{part}" for part in parts
    )
    assert sites["layers.1.linear2"].preds == ("layers.1.linear1",)
    assert len(sites) == 2 * 8
    assert all(site.preds for name, site in sites.items() if not name.startswith("layers.0"))


def test_decoders_take_keys_and_values_from_the_memory():
    model = nn.Transformer(6, 2, 1, 1, 9, batch_first=True)
    structure = structure_of(model, torch.randn(2, 5, 6), torch.randn(2, 4, 6))
    sites = {site.name: site for site in structure.sites}
    cross = "decoder.layers.0.multihead_attn"
    assert sites[f"{cross}.q"].preds == ("decoder.layers.0.norm1",)
    assert sites[f"{cross}.k"].preds == sites[f"{cross}.v"].preds == ("encoder.norm",)
    assert not structure.why_not_portable()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("inputs", [1, 3])
def test_bert_is_known_completely(attention, inputs):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=16, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    hidden = torch.ones(2, 12, dtype=torch.long)
    hidden[0, 7:] = 0
    example = (torch.randint(0, 60, (2, 12)), hidden, torch.zeros(2, 12, dtype=torch.long))
    structure = structure_of(model, *example[:inputs])
    sites = {site.name: site for site in structure.sites}
    assert not structure.why_not_portable()
    assert all(s.in_group is None and s.out_group is None for s in structure.sites)
    assert [site.name for site in structure.sites if site.kind == "raw"] == ["embeddings"]
    assert not sites["embeddings"].matched
    assert [face.vocabulary for face in structure.inputs] == [60, 2, 2][:inputs]
    words = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    assert sites["embeddings.LayerNorm"].preds == tuple(f"embeddings.{word}" for word in words)
    for block in range(2):
        at = f"encoder.layer.{block}.attention"
        projections = tuple(f"{at}.self.{part}" for part in ("query", "key", "value"))
        assert sites[f"{at}.output.dense"].preds == projections
    assert [face.axes for face in structure.outputs] == [("N", "T", "F"), ("N", "F")]


def test_learned_queries_are_what_attention_follows():
    def run(net, x):
        queries = net.queries.weight[None].expand(len(x), -1, -1)
        return net.out(net.attention(queries, x, x)[0])

    model = Net(
        run, queries=nn.Embedding(4, 6), attention=nn.MultiheadAttention(6, 2, batch_first=True),
        out=nn.Linear(6, 3),
    )  # fmt: skip
    structure = structure_of(model, torch.randn(2, 5, 6))
    preds = {site.name: site.preds for site in structure.sites}
    assert preds["attention.q"] == ("queries",)
    assert preds["attention.k"] == preds["attention.v"] == ()
    assert structure.outputs[0].axes[0] == "N"


# Recurrent layers.


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_and_directions_follow_each_other(cls, batch_first):
    model = Net(
        lambda net, x: net.out(net.rnn(net.fc(x))[0]),
        fc=nn.Linear(3, 4), out=nn.Linear(10, 2),
        rnn=cls(4, 5, num_layers=2, bidirectional=True, batch_first=batch_first),
    )  # fmt: skip
    structure = structure_of(model, torch.randn(2, 6, 3))
    preds = {site.name: site.preds for site in structure.sites}
    assert preds["rnn.l0"] == preds["rnn.l0_reverse"] == ("fc",)
    assert preds["rnn.l1"] == preds["rnn.l1_reverse"] == ("rnn.l0", "rnn.l0_reverse")
    assert preds["out"] == ("rnn.l1", "rnn.l1_reverse")
    assert structure.outputs[0].axes == ("N", "T", "F")
    assert not structure.why_not_portable()


@pytest.mark.parametrize(
    "take",
    [
        lambda y, h: y[:, -1], lambda y, h: h[-1], lambda y, h: h.transpose(0, 1).flatten(1)[:, :5],
        lambda y, h: y.mean(1), lambda y, h: y.max(1).values, lambda y, h: h.squeeze(0),
        lambda y, h: y[torch.arange(2), torch.tensor([3, 5])],
        lambda y, h: y.gather(1, torch.tensor([3, 5]).view(2, 1, 1).expand(2, 1, 5))[:, 0],
    ],
)  # fmt: skip
def test_what_classifiers_take_of_a_recurrent_layer(take):
    model = Net(
        lambda net, x: net.out(take(*net.rnn(net.words(x)))),
        words=nn.Embedding(9, 4), rnn=nn.GRU(4, 5, batch_first=True), out=nn.Linear(5, 2),
    )  # fmt: skip
    structure = structure_of(model, torch.randint(0, 9, (2, 6)))
    assert {s.name: s.preds for s in structure.sites}["out"] == ("rnn",)
    assert structure.outputs[0].axes == ("N", "F")
    assert not structure.why_not_portable()


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_sequences(sort, batch_first):
    def run(net, x):
        packed = nn.utils.rnn.pack_padded_sequence(
            net.words(x), torch.tensor([6, 4]), batch_first, enforce_sorted=sort
        )
        y, (h, _) = net.rnn(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first)
        return net.out(y), h

    model = Net(
        run, words=nn.Embedding(9, 4), rnn=nn.LSTM(4, 5, batch_first=batch_first),
        out=nn.Linear(5, 2),
    )  # fmt: skip
    x = torch.randint(0, 9, (2, 6) if batch_first else (6, 2))
    structure = structure_of(model, x)
    preds = {site.name: site.preds for site in structure.sites}
    assert preds == {"words": (), "rnn": ("words",), "out": ("rnn",)}
    assert not structure.why_not_portable()


def test_a_cell_in_a_loop_is_a_layer():
    def run(net, x):
        h = c = torch.zeros(len(x), 5)
        for t in range(x.shape[1]):
            h, c = net.cell(net.fc(x[:, t]), (h, c))
        return net.out(h)

    model = Net(run, fc=nn.Linear(3, 4), cell=nn.LSTMCell(4, 5), out=nn.Linear(5, 2))
    structure = structure_of(model, torch.randn(2, 4, 3))
    assert {s.name: s.preds for s in structure.sites} == {
        "fc": (), "cell": ("fc",), "out": ("cell",)
    }  # fmt: skip
    assert not structure.why_not_portable()


def test_a_state_from_another_layer_is_a_predecessor():
    model = Net(
        lambda net, x, y: net.decoder(hx=net.encoder(x)[1], input=y)[0],
        encoder=nn.GRU(3, 5, 2, batch_first=True), decoder=nn.GRU(4, 5, 2, batch_first=True),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 6, 3), torch.randn(2, 7, 4))
    assert sites["decoder.l0"].preds == ("encoder.l1",)
    assert set(sites["decoder.l1"].preds) == {"encoder.l1", "decoder.l0"}


def test_columns_of_an_image_read_by_a_recurrent_layer():
    """As in text recognition: each column, channels and rows together, is a step."""
    model = Net(
        lambda net, x: net.rnn(net.conv(x).permute(0, 3, 1, 2).flatten(2))[0],
        conv=nn.Conv2d(1, 3, 1), rnn=nn.LSTM(12, 5, bidirectional=True, batch_first=True),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 1, 4, 6))
    assert sites["rnn.l0"].in_group == sites["rnn.l0_reverse"].in_group == (("C", 3), ("S0", 4))


# Graphs and faces.


def test_text_through_convolutions():
    model = Net(
        lambda net, x: net.out(net.conv(net.words(x).transpose(1, 2)).relu().amax(2)),
        words=nn.Embedding(9, 4), conv=nn.Conv1d(4, 5, 3), out=nn.Linear(5, 2),
    )  # fmt: skip
    structure = structure_of(model, torch.randint(0, 9, (2, 6)))
    assert structure.inputs[0].axes == ("N", "T")
    assert structure.inputs[0].vocabulary == 9
    assert all(site.in_group is None and site.out_group is None for site in structure.sites)
    assert not structure.why_not_portable()


def test_positions_are_a_site_without_predecessors():
    model = Net(
        lambda net, x: net.out(net.words(x) + net.places(torch.arange(x.shape[1]))),
        words=nn.Embedding(9, 4), places=nn.Embedding(6, 4), out=nn.Linear(4, 2),
    )  # fmt: skip
    structure = structure_of(model, torch.randint(0, 9, (2, 6)))
    assert {s.name: s.preds for s in structure.sites} == {
        "words": (), "places": (), "out": ("words", "places")
    }  # fmt: skip
    assert structure.inputs[0].vocabulary == 9
    assert not structure.why_not_portable()


def test_patches_of_images_as_tokens():
    def by_convolution(net, x):
        return net.cut(x).flatten(2).transpose(1, 2)

    def by_view(net, x):
        cut = x.view(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1)
        return net.cut(cut.reshape(-1, 4, 48))

    def by_unfold(net, x):
        cut = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
        return net.cut(cut.reshape(-1, 4, 48))

    def by_function(net, x):
        return net.cut(F.unfold(x, 4, stride=4).transpose(1, 2))

    groups = {
        by_convolution: None,
        by_view: (("S0", 4), ("S1", 4), ("C", 3)),
        by_unfold: (("C", 3), ("S0", 4), ("S1", 4)),
        by_function: (("C", 3), ("S0", 4), ("S1", 4)),
    }
    for patches, group in groups.items():
        model = Net(
            lambda net, x: net.out(net.norm(patches(net, x) + net.place(torch.arange(4))).mean(1)),  # noqa: B023
            cut=nn.Conv2d(3, 6, 4, 4) if patches is by_convolution else nn.Linear(48, 6),
            place=nn.Embedding(4, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 2),
        )  # fmt: skip
        structure = structure_of(model, torch.randn(2, 3, 8, 8))
        sites = {site.name: site for site in structure.sites}
        assert sites["cut"].in_group == group
        assert sites["norm"].preds == ("cut", "place")
        assert not structure.why_not_portable()


def test_a_token_in_front_is_a_parameter_of_the_model():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.fc(x)], 1)
            return self.out(x)[:, 0]

    structure = structure_of(Classifier(), torch.randn(2, 5, 3))
    preds = {site.name: site.preds for site in structure.sites}
    assert preds == {"classifier": ("fc",), "fc": (), "out": ("classifier",)}
    assert structure.outputs[0].axes == ("N", "F")
    assert "'classifier' is of a kind" in structure.why_not_portable()


@pytest.mark.parametrize("by_function", [False, True])
def test_an_output_layer_that_is_the_embedding(by_function):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.fc = nn.Embedding(7, 4), nn.Linear(4, 4)
            if not by_function:
                self.out = nn.Linear(4, 7, bias=False)
                self.out.weight = self.words.weight

        def forward(self, x):
            x = self.fc(self.words(x))
            return F.linear(x, self.words.weight) if by_function else self.out(x)

    structure = structure_of(Language(), torch.randint(0, 7, (2, 5)))
    words, fc = structure.sites
    assert (words.preds, words.is_output) == (("fc",), True)
    assert (fc.preds, fc.is_output) == (("words",), False)
    assert structure.outputs[0].axes == ("N", "T", "F")
    assert not structure.why_not_portable()


def test_a_shared_weight_with_a_bias_of_its_own_visits_both():
    model = Net(
        lambda net, x: net.b(net.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)
    )  # fmt: skip
    model.b.weight = model.a.weight
    sites = sites_of(model, torch.randn(2, 4))
    assert [role.name for role in sites["b"].roles] == ["bias"]
    assert (sites["a"].preds, sites["b"].preds) == (("a",), ("a",))
    assert sites["a"].is_output, "its weight is in what leaves b"
    assert sites["b"].is_output


def test_shared_weights_that_meet_a_flattened_image_are_unknown():
    model = Net(
        lambda net, x: net.a(x.flatten(1)) + net.b(net.conv(x).flatten(1)),
        conv=nn.Conv2d(2, 2, 1), a=nn.Linear(18, 4), b=nn.Linear(18, 4),
    )  # fmt: skip
    model.b.weight = model.a.weight
    sites = sites_of(model, torch.randn(2, 2, 3, 3))
    assert sites["a"].in_group == UNKNOWN_GROUP


def test_parameters_used_outside_their_layer_on_a_flattened_image_are_unknown():
    model = Net(
        lambda net, x: F.linear(net.conv(x).flatten(1), net.fc.weight, net.fc.bias),
        conv=nn.Conv2d(1, 2, 1), fc=nn.Linear(18, 3),
    )  # fmt: skip
    sites = sites_of(model, torch.randn(2, 1, 3, 3))
    assert sites["fc"].in_group == UNKNOWN_GROUP
    assert sites["fc"].preds == ("conv",)


def test_writing_through_a_view_is_noticed():
    def run(net, x):
        y = torch.zeros(len(x), 6)
        y[:, :3] = net.a(x)
        y[:, 3:] += net.b(x)
        return net.out(y)

    model = Net(run, a=nn.Linear(4, 3), b=nn.Linear(4, 3), out=nn.Linear(6, 2))
    sites = sites_of(model, torch.randn(2, 4))
    assert sites["out"].preds == ("a", "b")
    assert sites["out"].in_group is None


def test_what_is_made_anew_comes_from_nowhere():
    model = Net(
        lambda net, x: net.b(torch.zeros_like(net.a(x)) + x.new_ones(2, 4) + net.c(x)),
        a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4),
    )  # fmt: skip
    assert sites_of(model, torch.randn(2, 4))["b"].preds == ("c",)


def test_several_inputs_and_kinds_of_input():
    model = Net(
        lambda net, x, tokens, seen: net.fc(x.mean((2, 3))) + (net.words(tokens) * seen[..., None]).sum(1),  # noqa: E501
        fc=nn.Linear(3, 4), words=nn.Embedding(9, 4),
    )  # fmt: skip
    structure = structure_of(
        model, torch.randn(2, 3, 4, 4), torch.randint(0, 9, (2, 5)), torch.ones(2, 5, dtype=bool)
    )
    axes = [(face.axes, face.dtype, face.vocabulary) for face in structure.inputs]
    assert axes == [
        (("N", "C", "S0", "S1"), "float32", None),
        (("N", "T"), "int64", 9),
        (("N", "T"), "bool", 2),
    ]
    assert not structure.why_not_portable()


def test_a_ticket_of_a_transformer_is_placed_by_its_graph(tmp_path):
    """Other names, other order of registration, the same function."""

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 3)
            self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.first = nn.Embedding(7, 8)

        def forward(self, x):
            return self.last(self.body(self.first(x)))

    torch.manual_seed(0)
    source = nn.Sequential(
        nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
    ).eval()
    x = torch.randint(0, 7, (2, 5))
    hold = lt.prune(source, sparsity=0.5, example=x)
    lt.Ticket.from_model(source, example=x).save(tmp_path / "t")
    target = Renamed().eval()
    applied = lt.load(tmp_path / "t").apply(target, example=x)
    assert torch.allclose(source(x), target(x), atol=1e-6)
    for part in "qkv":
        name = f"self_attn.{part}.weight"
        assert np.array_equal(hold.masks[f"1.{name}"], applied.masks[f"body.{name}"])


def test_a_chain_of_moves_is_drawn_at_all():
    """The properties above would be empty without."""
    x = torch.arange(24).reshape(1, 2, 3, 4)
    found = set()

    @settings(max_examples=50, deadline=None, database=None)
    @given(chain=moves(True))
    def collect(chain):
        assume(chain)
        found.add(tuple(moved(x, chain).reshape(-1).tolist()))

    collect()
    assert len(found) > 4
