"""The torch backend keeps every promise of the conformance suite, and some of its own."""

import copy
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune as torch_prune  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import (  # noqa: E402
    CapabilityError,
    InvalidValueError,
    ModelError,
    ModelNotBuiltError,
    NothingPrunableError,
    SelectorError,
)
from ltcore.plugins import detect  # noqa: E402
from ltcore.testing import BackendConformance  # noqa: E402


class GlobalPool(nn.Module):
    def forward(self, x):
        return x.mean(dim=tuple(range(2, x.dim())))


BUILDERS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(3, 2, 2)),
    "conv2d": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=2), nn.ReLU(), nn.Conv2d(3, 2, (1, 2))),
    "conv3d": lambda: nn.Sequential(
        nn.Conv3d(2, 3, (2, 1, 3)), nn.ReLU(), nn.Conv3d(3, 2, 1)),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    "conv_transpose": lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 3, (3, 2), stride=2), nn.ReLU(), nn.Conv2d(3, 2, 2)),
    "batchnorm": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), GlobalPool(), nn.Linear(3, 2)),
    "layernorm": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)),
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)),
    "flatten": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
    "flatten_norm": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.Flatten(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2)),
    "image": lambda: nn.Sequential(
        nn.Linear(5, 18), nn.BatchNorm1d(18), nn.ReLU(), nn.Unflatten(1, (3, 3, 2)),
        nn.Conv2d(3, 2, 2)),
    "shared": lambda: (lambda f: nn.Sequential(f, nn.ReLU(), f, nn.ReLU(), nn.Linear(5, 2)))(
        nn.Linear(5, 5)),
}  # fmt: skip


class TestTorchConformance(BackendConformance):
    optimizers = ("sgd", "clipped", "adamw")

    def backend(self):
        return detect(nn.Linear(1, 1))

    def build(self, case, seed=0):
        torch.manual_seed(seed)
        return BUILDERS[case]()

    def to_native(self, case, array):
        return torch.from_numpy(array)

    def trainer(self, model, case, optimizer="sgd"):
        made = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
            "clipped": lambda p: torch.optim.SGD(p, lr=0.1),
            "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        }[optimizer](model.parameters())
        x, y, loss = self.example(case), self.targets(case), self.loss()

        def train(updates):
            model.train()
            for _ in range(updates):
                made.zero_grad()
                loss(model(x), y).backward()
                if optimizer == "clipped":
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                made.step()

        return train

    def loss(self):
        return nn.functional.mse_loss


class Compiled(TestTorchConformance):
    """The same promises for a model behind torch.compile (one case: compiling is slow)."""

    cases = ("batchnorm",)

    def build(self, case, seed=0):
        torch._dynamo.reset()
        return torch.compile(super().build(case, seed), backend="aot_eager")

    def copy(self, model):
        return torch.compile(copy.deepcopy(model._orig_mod), backend="aot_eager")


@pytest.mark.slow
class TestCompiled(Compiled):
    pass


def describe(model, example=None):
    return detect(model).describe(model, example)


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
    ids=["plain", "compile", "DataParallel", "AveragedModel", "both"],
)
def test_wrappers_do_not_change_names(wrap):
    assert list(describe(wrap(mlp())).shapes) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_ddp_does_not_change_names_and_is_held(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = mlp()
        wrapped = nn.parallel.DistributedDataParallel(model)
        hold = lt.prune(wrapped, sparsity=0.5)
        assert list(hold.masks) == ["0.weight", "2.weight"]
        assert lt.held(model) is hold
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(5, 4)).square().mean().backward()
            gradient = model[0].weight.grad.numpy()
            assert gradient.any()
            optimizer.step()
            hold.check()
        state = optimizer.state[model[0].weight]["exp_avg"].numpy()
        assert not state[~hold.masks["0.weight"]].any(), "DDP's reduction brought gradients back"
    finally:
        torch.distributed.destroy_process_group()


def test_a_wrapper_inside_the_model_and_a_child_called_module():
    model = nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"))
    model.module = nn.Linear(3, 3)
    assert list(describe(model).shapes) == ["0.weight", "0.bias", "module.weight", "module.bias"]


def test_a_single_layer_is_a_model():
    hold = lt.prune(nn.Linear(4, 4), sparsity=0.5)
    assert list(hold.masks) == ["linear.weight"]


class Branches(nn.Module):
    """Nested modules, a residual sum, a functional flatten, and a parameter of the root."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.block = nn.ModuleDict({"a": nn.Conv2d(2, 2, 1), "b": nn.Conv2d(2, 2, 1)})
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = self.block["a"](x) + self.block["b"](x.relu())
        return self.head(torch.flatten(x * self.scale, 1))


def test_nested_modules_and_data_flow():
    structure = describe(Branches(), torch.randn(2, 2, 4, 4))
    sites = {site.name: site for site in structure.sites}
    assert list(sites) == ["branches", "block.a", "block.b", "head"]
    assert sites["branches"].kind == "raw"
    assert sites["branches"].preds == ("block.a", "block.b")
    assert sites["head"].preds == ("branches",)
    assert sites["head"].in_group == (("C", 2), ("S0", 4), ("S1", 4))
    assert [site.is_output for site in structure.sites] == [False, False, False, True]
    assert "no portable layout" in structure.why_not_portable()
    assert structure.inputs[0].axes == ("N", "C", "S0", "S1")
    assert structure.outputs[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("flatten", "group"),
    [
        (lambda x: x.flatten(1), (("C", 3), ("S0", 4), ("S1", 5))),
        (lambda x: x.view(x.size(0), -1), (("C", 3), ("S0", 4), ("S1", 5))),
        (lambda x: x.reshape(-1, 60), (("C", 3), ("S0", 4), ("S1", 5))),
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), (("S0", 4), ("S1", 5), ("C", 3))),
        (lambda x: x.permute(0, 2, 3, 1).contiguous().view(-1, 60),
         (("S0", 4), ("S1", 5), ("C", 3))),
        (lambda x: x.transpose(1, 3).flatten(1), (("S1", 5), ("S0", 4), ("C", 3))),
        (lambda x: x.flip(1).flatten(1), (("?", 0),)),
        (lambda x: (x + x.roll(1, 1)).flatten(1), (("?", 0),)),
        (lambda x: torch.cat([x.flatten(1)[:, :30], x.flatten(1)[:, 30:]], 1), (("?", 0),)),
        (lambda x: torch.nn.functional.max_pool2d(x.repeat_interleave(2, 3), (1, 2)).flatten(1),
         (("?", 0),)),
    ],
)  # fmt: skip
def test_flatten_order_is_derived_or_unknown_never_guessed(flatten, group):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(60, 2)

        def forward(self, x):
            return self.fc(flatten(self.conv(x).relu()))

    structure = describe(Net(), torch.randn(2, 1, 4, 5))
    assert structure.by_name["fc.weight"][0].in_group == group


@pytest.mark.parametrize("pool", [
    lambda x: x.mean((2, 3)), lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    lambda x: nn.AdaptiveAvgPool2d(1)(x)[:, :, 0, 0], lambda x: x.amax((-1, -2)),
    lambda x: nn.functional.avg_pool2d(x, 4).squeeze(),
])  # fmt: skip
def test_global_pooling_needs_no_group(pool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(pool(self.conv(x)))

    structure = describe(Net(), torch.randn(2, 1, 4, 4))
    assert structure.by_name["fc.weight"][0].in_group is None
    assert not structure.why_not_portable()


def test_tracing_leaves_modes_statistics_and_random_state():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    describe(model, torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(2), expected)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_example_the_model_does_not_take():
    with pytest.raises(ModelError, match=r"does not take the example.*\(2, 5\)"):
        describe(mlp(), torch.randn(2, 5))


def test_numpy_examples_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    structure = describe(Two(), (np.ones((2, 3), np.float32), torch.ones(2, 4)))
    assert [face.shape for face in structure.inputs] == [(0, 3), (0, 4)]


def test_lazy_layers_need_an_example():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ModelNotBuiltError, match=r"'0\.weight' has no values yet.*example="):
        lt.prune(model, sparsity=0.5)
    assert lt.prune(model, sparsity=0.5, example=torch.ones(1, 5)).masks.total == 15 + 6


def test_models_with_nothing_prunable():
    for model in (nn.ReLU(), nn.Sequential(nn.Embedding(3, 3), nn.LayerNorm(3)), Branches().block):
        if isinstance(model, nn.ModuleDict):
            continue
        with pytest.raises(NothingPrunableError, match=r"nothing to prune.*prunable="):
            lt.prune(model, sparsity=0.5)


def test_prunable_selectors_choose_and_fail_clearly():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    assert list(lt.prune(model, 0.5, prunable=["*"], scope="layer").masks) == [
        "0.weight",
        "1.weight",
        "1.bias",
    ]
    assert lt.held(model).masks.emptied == ()
    with pytest.raises(SelectorError, match=r"prunable: the selector 'fc\*' matches none.*2\.bias"):
        lt.prune(mlp(), 0.5, prunable=["fc*"])


def test_models_under_torch_prune_say_how_to_go_on():
    model = mlp()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ModelError, match=r"'0\.weight_orig' is under.*remove\(module, 'weight'\)"):
        lt.hold(model)
    torch_prune.remove(model[0], "weight")
    assert lt.hold(model).masks.counts["0.weight"] == (12, 24)


def test_parametrized_layers_are_left_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    hold = lt.prune(model, sparsity=0.5)
    assert list(hold.masks) == ["1.weight"]


def test_redraw_needs_every_layer_to_know_its_initializer():
    model = Branches()
    with pytest.raises(CapabilityError, match=r"'model' \(Branches\).*reset_parameters"):
        detect(model).redraw(model, describe(model), 0)


class Scaled(nn.Linear):
    """Has a parameter that its reset_parameters knows nothing of."""

    def __init__(self):
        super().__init__(4, 6)
        self.scale = nn.Parameter(torch.ones(6))


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Scaled, "0.scale"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 6)), "0.weight_orig"),
    ],
)
def test_redraw_never_hands_back_what_no_layer_draws(make, left):
    model = nn.Sequential(make(), nn.Linear(6, 2))
    backend, structure = detect(model), describe(model)
    with pytest.raises(CapabilityError, match=rf"'{left}'.*not drawn anew"):
        backend.redraw(model, structure, 0)
    before = model[1].weight.detach().clone()
    fresh = backend.redraw(model, structure, 0, ["1.weight"])  # nobody asks for the other
    assert np.isfinite(fresh["1.weight"]).all()
    assert (fresh["1.weight"] != before.numpy()).any()
    assert torch.equal(model[1].weight, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_redraw_of_a_model_with_tensors_that_have_a_history():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    fresh = detect(model).redraw(model, describe(model), 0, ["1.weight"])
    assert np.isfinite(fresh["1.weight"]).all()


def test_parameters_that_share_memory_alone_are_refused():
    model = mlp()
    model.twin = nn.Linear(4, 6)
    model.twin.weight.data = model[0].weight.data
    with pytest.raises(ModelError, match=r"'0\.weight' and 'twin\.weight' share memory.*make them"):
        describe(model)
    model.twin.weight = model[0].weight
    _, role = describe(model).by_name["0.weight"]
    assert role.aliases == ("twin.weight",)


def test_an_array_of_another_shape_is_refused_before_anything_is_written():
    model = mlp()
    backend, structure = detect(model), describe(model)
    params = {name: array + 1 for name, array in backend.read(model, structure).items()}
    params["2.weight"] = params["2.weight"].T.copy()  # as many entries
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        InvalidValueError, match=r"'2\.weight' has canonical shape \(2, 6\); .*\(6, 2\) was given"
    ):
        backend.write(model, structure, params)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_that_become_one_are_numbered():
    model = nn.ParameterDict({"a/b": torch.zeros(2), "a_b": torch.ones(3), "a:b": torch.ones(4)})
    found = {name: (role.native, role.shape) for name, _, role in describe(model).items()}
    assert sorted(found.values()) == [("a/b", (2,)), ("a:b", (4,)), ("a_b", (3,))]


def test_a_lazy_buffer_needs_an_example():
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(ModelNotBuiltError, match=r"buffer '1\.running_mean' has no values yet"):
        describe(model)
    assert "1.running_mean" in describe(model, torch.ones(4, 3)).by_name


def test_a_buffer_of_the_user_may_be_called_a_mask():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.register_buffer("weight_mask", torch.ones(4, 4).tril())

    assert lt.prune(nn.Sequential(Masked()), sparsity=0.5, prunable=["0.weight"]).masks.total == 16


class Noisy(nn.Module):
    """Draws random numbers and keeps books in eval mode too."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls += 1
        self.last = x.detach()
        return self.fc(x + torch.randn_like(x)) + self.calls


def gradients(model, batches):
    return detect(model).gradients(model, describe(model), batches, nn.functional.mse_loss)


@pytest.mark.parametrize(
    "run",
    [
        lambda model: describe(model, torch.ones(2, 4)),
        lambda model: detect(model).forward(model, describe(model), [np.ones((2, 4), np.float32)]),
        lambda model: gradients(model, [(torch.ones(2, 4), torch.ones(2, 2))]),
    ],
    ids=["describe", "forward", "gradients"],
)
def test_forwards_of_our_own_leave_no_traces(run):
    model = Noisy()
    state = torch.get_rng_state()
    run(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0
    assert model.last is None
    assert model.training


def test_outputs_that_are_buffers_are_read_before_they_are_restored():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x):
            self.calls += 1
            return self.fc(x), self.calls

    model = Counter()
    _, calls = detect(model).forward(model, describe(model), [np.ones((2, 4), np.float32)])
    assert calls.tolist() == [1, 1]


def test_gradients_need_batches_and_no_grad_mode_of_the_user():
    model = mlp()
    with pytest.raises(InvalidValueError, match="batches is empty; expected pairs"):
        gradients(model, iter(()))
    batches = [(torch.ones(2, 4), torch.ones(2, 2))]
    expected = gradients(model, batches)
    with torch.no_grad():
        found = gradients(model, batches)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_a_call_from_another_thread_is_no_part_of_the_trace():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            early = self.a(x)
            late = self.b(early)
            other = threading.Thread(target=lambda: calls.append(self.c(early)))
            other.start()
            other.join()
            return self.c(late)

    calls = []
    structure = describe(Net(), torch.ones(2, 4))
    assert calls, "no other thread called"
    assert structure.by_name["c.weight"][0].preds == ("b",)


# Counting updates.


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another, as SAM is one too."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base = base

    def step(self, closure=None):
        return self.base.step(closure)


def update(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def test_an_update_of_an_optimizer_around_another_counts_once():
    model = mlp()
    watch = detect(model).watch(model, describe(model), [1, 2, 3])
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    states = []
    for _ in range(3):
        update(model, optimizer)
        states.append(model[0].weight.detach().clone().numpy())
    assert watch.steps == 3
    assert all(np.array_equal(watch.snapshots[n + 1]["0.weight"], w) for n, w in enumerate(states))


def test_updates_count_after_one_that_raised():
    model = mlp()
    watch = detect(model).watch(model, describe(model), [])
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    update(model, optimizer)
    assert watch.steps == 1


def test_updates_made_in_the_step_of_a_stranger_count():
    model, outer = mlp(), nn.Linear(2, 2)
    watch = detect(model).watch(model, describe(model), [])
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        update(model, inner)
        return outer(torch.ones(1, 2)).sum()

    torch.optim.SGD(outer.parameters(), lr=0.1).step(closure)
    assert watch.steps == 1


def test_updates_count_on_when_the_first_layer_is_replaced():
    model = mlp()
    watch = detect(model).watch(model, describe(model), [])
    update(model, torch.optim.SGD(model.parameters(), lr=0.1))
    old = model[0]
    model[0] = nn.Sequential(nn.Linear(4, 6))  # no parameter is called 0.weight now
    update(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert watch.steps == 2
    assert old.weight is not None  # it lives on, and counts no more


def test_channels_last_memory_reads_and_writes_the_same_values():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    backend = detect(model)
    structure = backend.describe(model)
    params = backend.read(model, structure)
    assert np.array_equal(params["0.weight"], model[0].weight.detach().contiguous().numpy())
    hold = lt.prune(model, sparsity=0.5)
    hold.check()
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = mlp().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    hold = lt.prune(model, sparsity=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4, device="cuda")).square().mean().backward()
        optimizer.step()
        hold.check()
    model.cpu()
    model(torch.randn(5, 4)).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    hold.check()
