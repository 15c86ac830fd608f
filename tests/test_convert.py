"""Coming from other tools and going back: exact, with the model left alone, or refused."""

import copy
import os
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

import safetensors.torch  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import (  # noqa: E402
    CapabilityError,
    CheckpointError,
    MatchError,
    ModelError,
    NonFiniteError,
    NothingPrunedError,
)
from ltcore.plugins import backend_named  # noqa: E402
from ltcore.testing.reference import ReferenceBackend  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
X = np.random.default_rng(3).standard_normal((6, 3, 8, 8)).astype(np.float32)
EXAMPLE = X[:1]


def torch_net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6),
        nn.ReLU(), nn.Linear(6, 5),
    )  # fmt: skip
    model(torch.from_numpy(X))  # moves the running statistics
    return model


def keras_net(seed=0, names=("a", "b", "c", "d")):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        L.Input((8, 8, 3)), L.Conv2D(4, 3, name=names[0]),
        L.BatchNormalization(epsilon=1e-5, momentum=0.9, name=names[1]), L.ReLU(), L.Flatten(),
        L.Dropout(0.5), L.Dense(6, "relu", name=names[2]), L.Dense(5, name=names[3]),
    ])  # fmt: skip


def out_torch(model):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(torch.from_numpy(X)).numpy()


def out_keras(model):
    return np.asarray(model(np.moveaxis(X, 1, -1), training=False))


def snapshot(model):
    """Everything that a conversion must leave alone, as bytes."""
    if isinstance(model, nn.Module):
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: (id(t), t.detach().numpy().tobytes()) for name, t in live.items()}
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else [])]
    return {i: np.asarray(v.value).tobytes() for i, v in enumerate(variables)}


@pytest.fixture
def untouched():
    """Return ``watch(model)``; a watched model must be the same at the end of the test."""
    seen = []

    def watch(model):
        seen.append((model, snapshot(model)))
        return model

    yield watch
    assert seen
    for model, before in seen:
        assert snapshot(model) == before


# Models under torch.nn.utils.prune


def prune_twice(model):
    prune.l1_unstructured(model[4], "weight", 0.4)
    prune.random_unstructured(model[4], "weight", 0.3)
    prune.l1_unstructured(model[0], "weight", 7)


def prune_structured(model):
    prune.ln_structured(model[4], "weight", 0.5, n=2, dim=0)
    prune.random_structured(model[0], "weight", 1, dim=1)


def prune_globally(model):
    pairs = [(model[i], "weight") for i in (0, 4, 6)]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.7)


def prune_bias_too(model):
    prune.l1_unstructured(model[6], "bias", 2)
    prune.l1_unstructured(model[6], "weight", 0.5)


PRUNINGS = [prune_twice, prune_structured, prune_globally, prune_bias_too]


@pytest.fixture(params=PRUNINGS, ids=lambda pruning: pruning.__name__)
def pruned(request):
    torch.manual_seed(1)
    model = torch_net()
    request.param(model)
    model(torch.from_numpy(X)).sum().backward()  # leaves weights that torch refuses to copy
    return model


def masks_of(model):
    """What torch itself says is kept, by the weight's name."""
    return {
        name.removesuffix("_mask"): buffer.numpy() == 1
        for name, buffer in model.named_buffers()
        if name.endswith("_mask")
    }


def made_permanent(model):
    """The same model by torch's own way out."""
    plain = torch_net()
    plain.load_state_dict({
        name.removesuffix("_orig"): tensor.data * dict(model.named_buffers()).get(
            name.removesuffix("_orig") + "_mask", torch.ones(()))
        for name, tensor in model.state_dict().items() if not name.endswith("_mask")
    })  # fmt: skip
    return plain


def test_a_pruned_model_gives_torchs_own_masks_and_weights(pruned, untouched):
    hooks = {name: len(m._forward_pre_hooks) for name, m in pruned.named_modules()}
    ticket = lt.from_pruned(untouched(pruned), example=EXAMPLE)
    assert ticket.masks == masks_of(pruned)
    for name, tensor in made_permanent(pruned).state_dict().items():
        found = ticket.weights()[name]
        assert found.dtype == tensor.numpy().dtype
        assert np.array_equal(found, tensor.numpy()), name
        assert not np.signbit(found[found == 0]).any()  # no -0.0 where a weight is pruned
    assert not ticket.why_not_portable()
    assert ticket.provenance["converted_from"] == {"format": "pruned", "masks": "stored"}
    assert {name: len(m._forward_pre_hooks) for name, m in pruned.named_modules()} == hooks


def test_a_pruned_model_its_state_dict_and_its_file_are_one(pruned, untouched, tmp_path):
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    model = untouched(torch_net(9))
    one = lt.from_pruned(pruned)
    for source in (pruned.state_dict(), tmp_path / "pruned.pt", str(tmp_path / "pruned.pt")):
        other = lt.from_checkpoint(model, source)
        assert other.masks == one.masks
        assert all(np.array_equal(other.params[n], array) for n, array in one.params.items())


def test_pruning_made_permanent_is_found_by_its_zeros(pruned, untouched):
    plain = made_permanent(pruned)
    with pytest.raises(NothingPrunedError, match="from_checkpoint"):
        lt.from_pruned(plain)
    names = list(masks_of(pruned))
    ticket = lt.from_checkpoint(untouched(torch_net(9)), plain.state_dict(), prunable=names)
    assert ticket.masks == masks_of(pruned)
    assert ticket.provenance["converted_from"]["masks"] == "zeros"


def test_a_kept_weight_may_be_zero(tmp_path):
    model = torch_net()
    keep = torch.ones(5, 6)
    keep[1, 2:5] = 0
    with torch.no_grad():
        model[6].weight[0, 0] = 0.0
        model[6].weight[0, 1] = -0.0
    prune.custom_from_mask(model[6], "weight", keep)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    for ticket in (lt.from_pruned(model), lt.from_checkpoint(torch_net(), tmp_path / "a.pt")):
        assert np.array_equal(ticket.masks["6.weight"], keep.numpy() == 1)
        assert np.signbit(ticket.weights()["6.weight"][0, 1])
        assert ticket.masks.total == 30  # what was not under pruning has no mask
    zeros = lt.from_checkpoint(torch_net(), made_permanent(model).state_dict())
    assert (zeros.masks.total - zeros.masks.kept) == 3 + 2


def test_wrappers_of_a_pruned_model_do_not_matter(pruned):
    wrapped = nn.DataParallel(pruned)
    assert lt.from_pruned(wrapped).masks == masks_of(pruned)


def test_masks_that_keep_all_are_no_ticket():
    model = torch_net()
    prune.identity(model[4], "weight")
    with pytest.raises(NothingPrunedError, match=r"4\.weight.*keep every weight"):
        lt.from_pruned(model)


def test_a_pruned_model_elsewhere_says_where_to_go(pruned):
    with pytest.raises(ModelError, match=r"ltcore\.from_pruned"):
        lt.prune(pruned, 0.5)


def test_a_recurrent_layer_under_pruning():
    model = nn.LSTM(3, 4)
    prune.l1_unstructured(model, "weight_hh_l0", 0.5)
    ticket = lt.from_pruned(model)
    (mask,) = ticket.masks.values()
    assert np.array_equal(mask, model.weight_hh_l0_mask.numpy() == 1)


# Torch checkpoints


def sparse_state(seed=0):
    model = torch_net(seed)
    with lt.prune(model, 0.6) as hold:
        return model.state_dict(), hold.masks


CONTAINERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda state: {"model_state_dict": state, "lr": [0.1]},
    "lightning": lambda state: {
        "state_dict": {f"net.{name}": tensor for name, tensor in state.items()},
        "hyper_parameters": {"width": 3},
    },
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {
        "model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    },
    "compiled inside": lambda state: {
        name.replace("4.", "4._orig_mod."): tensor for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors"])
def test_every_container_and_suffix(container, suffix, untouched, tmp_path):
    state, masks = sparse_state()
    path = tmp_path / f"net{suffix}"
    wrapped = CONTAINERS[container](state)
    if suffix == ".safetensors":
        flat = next((v for v in wrapped.values() if isinstance(v, dict)), wrapped)
        safetensors.torch.save_file(flat, path)
    else:
        torch.save(wrapped, path)
    ticket = lt.from_checkpoint(untouched(torch_net(9)), path, example=EXAMPLE)
    assert ticket.masks == masks
    assert all(np.array_equal(ticket.params[n], tensor.numpy()) for n, tensor in state.items())
    told = ticket.provenance["converted_from"]
    assert told == {"format": "checkpoint", "file": path.name, "masks": "zeros"}
    assert str(tmp_path) not in str(ticket.provenance)
    ticket.save(tmp_path / "ticket.safetensors")
    assert lt.load(tmp_path / "ticket.safetensors") == ticket


def test_arrays_of_numpy_do_too():
    state, masks = sparse_state()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    assert lt.from_checkpoint(torch_net(), arrays).masks == masks


def test_prefixes_that_only_some_names_have_stay():
    state, _ = sparse_state()
    state["module.0.weight"] = state.pop("0.weight")
    with pytest.raises(MatchError, match=r"missing.*\['0\.weight'\].*\['module\.0\.weight'\]"):
        lt.from_checkpoint(torch_net(), state)


def test_a_prefix_that_the_model_has_stays():
    model = nn.ModuleDict({"module": nn.Linear(4, 3)})
    state = {"module.weight": torch.eye(3, 4), "module.bias": torch.ones(3)}
    assert lt.from_checkpoint(model, state).masks.counts == {"module.weight": (3, 12)}


def test_another_model_is_refused_with_all_differences(untouched):
    state, _ = sparse_state()
    del state["6.bias"]
    state["7.weight"] = torch.zeros(2)
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    facts = r"missing.*6\.bias.*unexpected.*7\.weight.*0\.weight.*\(4, 3, 5, 5\).*\(4, 3, 3, 3\)"
    with pytest.raises(MatchError, match=facts):
        lt.from_checkpoint(untouched(torch_net()), state)


def test_half_a_pair_of_weight_and_mask_is_refused():
    state, _ = sparse_state()
    state["0.weight_orig"] = state.pop("0.weight")
    with pytest.raises(MatchError, match=r"0\.weight.*0\.weight_orig"):
        lt.from_checkpoint(torch_net(), state)


def test_a_mask_of_other_values_is_refused():
    model = torch_net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    state = model.state_dict()
    state["0.weight_mask"] *= 0.5
    with pytest.raises(CheckpointError, match=r"0\.weight.*neither 0 nor 1"):
        lt.from_checkpoint(torch_net(), state)


def test_old_checkpoints_count_no_batches():
    state, masks = sparse_state()
    del state["1.num_batches_tracked"]
    assert lt.from_checkpoint(torch_net(), state).masks == masks


def test_a_dense_checkpoint_is_no_ticket(untouched):
    model = untouched(torch_net())
    with pytest.raises(NothingPrunedError, match=r"no exact zero in \['0\.weight'"):
        lt.from_checkpoint(model, torch_net(1).state_dict())


def test_only_zeros_of_what_is_prunable_count():
    state, masks = sparse_state()
    state["0.bias"].zero_()
    assert lt.from_checkpoint(torch_net(), state).masks == masks
    chosen = lt.from_checkpoint(torch_net(), state, prunable=["0.*"]).masks
    assert chosen.counts["0.bias"] == (0, 4)
    assert set(chosen) == {"0.weight", "0.bias"}


def test_weights_that_are_not_finite_are_refused():
    state, _ = sparse_state()
    state["6.bias"][1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"6\.bias"):
        lt.from_checkpoint(torch_net(), state)


def test_a_narrow_dtype_must_not_make_zeros():
    state, _ = sparse_state()
    state["6.weight"][0, 0] = 1e-9
    with pytest.raises(MatchError, match=r"6\.weight.*float32.*float16"):
        lt.from_checkpoint(torch_net().half(), state)


def test_a_held_model_stays_held():
    model = torch_net(5)
    hold = lt.prune(model, 0.3)
    state, masks = sparse_state()
    before = snapshot(model)
    assert lt.from_checkpoint(model, state).masks == masks
    assert snapshot(model) == before
    hold.check()
    assert lt.held(model) is not None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


def test_tied_weights_are_one(tmp_path):
    model = Tied()
    with torch.no_grad():
        model.out.weight[2:5] = 0
    torch.save(model.state_dict(), tmp_path / "a.pt")
    safetensors.torch.save_model(model, str(tmp_path / "a.safetensors"))  # one name of the two
    found = [lt.from_checkpoint(Tied(), tmp_path / f"a.{end}", prunable=["*"])
             for end in ("pt", "safetensors")]  # fmt: skip
    for ticket in found:
        (mask,) = ticket.masks.values()
        assert np.array_equal(mask, model.out.weight.detach().numpy() != 0)
    for end in ("pt", "safetensors"):
        lt.to_checkpoint(found[0], Tied(), tmp_path / f"b.{end}")
    twins = Tied(), Tied()
    twins[0].load_state_dict(torch.load(tmp_path / "b.pt"))
    safetensors.torch.load_model(twins[1], str(tmp_path / "b.safetensors"))
    assert all(torch.equal(twin.embed.weight, model.embed.weight) for twin in twins)


@pytest.mark.parametrize("name", ["embed.weight", "out.weight"])
def test_masks_of_tied_weights_are_one(name):
    model = Tied()
    state = model.state_dict()
    keep = (torch.arange(28).reshape(7, 4) % 3 > 0).float()
    pair = {f"{name}_orig": state.pop(name), f"{name}_mask": keep}
    (mask,) = lt.from_checkpoint(model, {**state, **pair}).masks.values()
    assert np.array_equal(mask, keep.numpy() == 1)


def test_tied_weights_that_differ_are_another_model():
    state = {"embed.weight": torch.zeros(7, 4), "out.weight": torch.ones(7, 4)}
    with pytest.raises(MatchError, match=r"embed\.weight.*out\.weight.*one tensor"):
        lt.from_checkpoint(Tied(), state, prunable=["*"])


# Files that nobody should trust


class Evil:
    """Unpickling this by Python's own reader makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def evil_inside(path, marker):
    state, _ = sparse_state()
    torch.save({"state_dict": state, "callbacks": Evil(marker)}, path)


def evil_legacy(path, marker):
    torch.save({"x": Evil(marker)}, path, _use_new_zipfile_serialization=False)


def evil_raw(path, marker):
    path.write_bytes(pickle.dumps(Evil(marker)))


def evil_module(path, marker):
    torch.save(torch_net(), path)  # a whole module is code too


@pytest.mark.parametrize("make", [evil_inside, evil_legacy, evil_raw, evil_module])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(make, suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the door
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "marker"
    make(path, marker)
    with pytest.raises(CheckpointError, match="refused.*could run code") as caught:
        lt.from_checkpoint(torch_net(), path)
    assert "weights_only` set to `False`" not in str(caught.value)
    assert not marker.exists()
    if make is not evil_module:
        with open(path, "rb") as file:  # the bait is real
            if make is evil_raw:
                pickle.load(file)
            else:
                torch.load(file, weights_only=False)
        assert marker.exists()


def test_masks_of_open_lth_are_loaded_with_the_same_care(tmp_path):
    marker = tmp_path / "marker"
    torch.save(torch_net().state_dict(), tmp_path / "model_ep0_it0.pth")
    evil_inside(tmp_path / "mask.pth", marker)
    with pytest.raises(CheckpointError, match="refused"):
        lt.from_open_lth(torch_net(), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"x" * 999]
)
def test_damaged_files_are_refused(damage, suffix, untouched, tmp_path):
    state, _ = sparse_state()
    path = tmp_path / f"a{suffix}"
    (torch.save if suffix == ".pt" else safetensors.torch.save_file)(state, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"a\{suffix}"):
        lt.from_checkpoint(untouched(torch_net()), path)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"state_dict": {}}, {"a": 3, "b": "c"}, torch.ones(3), None]
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt holds no state dict"):
        lt.from_checkpoint(torch_net(), tmp_path / "a.pt")


def test_what_is_no_checkpoint_file(tmp_path):
    ticket = lt.from_checkpoint(torch_net(), sparse_state()[0])
    ticket.save(tmp_path / "ticket.safetensors")
    (tmp_path / "a.onnx").write_bytes(b"x")
    for name, facts in {
        "ticket.safetensors": r"is a ticket.*ltcore\.load",
        "a.onnx": r"\.pt, .*\.safetensors",
        "missing.pt": "no such file",
        "": "folder",
    }.items():
        with pytest.raises(CheckpointError, match=facts):
            lt.from_checkpoint(torch_net(), tmp_path / name)


# Folders of open_lth


def open_lth_folder(root, masks, models):
    """As open_lth writes it: integer masks, state dicts, a report and a log."""
    folder = root / "lottery_abc" / "replicate_1" / "level_3" / "main"
    folder.mkdir(parents=True)
    torch.save({name: mask.int() for name, mask in masks.items()}, folder / "mask.pth")
    for (epoch, iteration), model in models.items():
        torch.save(model.state_dict(), folder / f"model_ep{epoch}_it{iteration}.pth")
    (folder / "sparsity_report.json").write_text('{"total": 1.0, "unpruned": 1.0}')
    (folder / "logger").write_text("")
    return folder


@pytest.fixture
def lottery(tmp_path):
    torch.manual_seed(2)
    masks = {f"{i}.weight": torch.rand_like(torch_net()[i].weight) > 0.7 for i in (0, 4, 6)}
    models = {
        (10, 0): torch_net(3),
        (0, 0): torch_net(1),
        (2, 5): torch_net(2),
        (0, 40): torch_net(4),
    }
    for model in models.values():
        with torch.no_grad():  # as its wrapper applies them
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
            model[6].weight[masks["6.weight"]] = 0.0  # kept, and zero all the same
    return open_lth_folder(tmp_path, masks, models), masks, models


@pytest.mark.parametrize(
    ("weights", "step", "rewind"),
    [
        (None, (0, 0), {"kind": "initialization", "step": 0}),
        ("model_ep0_it0", (0, 0), {"kind": "initialization", "step": 0}),
        ("model_ep0_it40.pth", (0, 40), {"kind": "step", "step": 40}),
        ("model_ep2_it5", (2, 5), {"kind": "epoch", "epoch": 2, "iteration": 5}),
        ("model_ep10_it0", (10, 0), {"kind": "epoch", "epoch": 10, "iteration": 0}),
    ],
)
def test_a_folder_of_open_lth(lottery, weights, step, rewind, untouched):
    folder, masks, models = lottery
    model = untouched(torch_net(9))
    for place in (folder, folder.parent, str(folder)):
        ticket = lt.from_open_lth(model, place, weights=weights, example=EXAMPLE)
        assert ticket.masks == {name: mask.numpy() for name, mask in masks.items()}
        expected = models[step].state_dict()
        assert all(np.array_equal(ticket.weights()[n], t.numpy()) for n, t in expected.items())
        assert ticket.provenance["rewind"] == rewind
        assert ticket.provenance["converted_from"] == {
            "format": "open_lth", "masks": "stored", "folder": "replicate_1/level_3/main",
            "file": f"model_ep{step[0]}_it{step[1]}.pth",
        }  # fmt: skip


def test_the_earliest_is_by_number_not_by_name(lottery):
    folder, _, models = lottery
    (folder / "model_ep0_it0.pth").unlink()
    (folder / "model_ep0_it40.pth").unlink()
    ticket = lt.from_open_lth(torch_net(), folder)
    assert ticket.provenance["converted_from"]["file"] == "model_ep2_it5.pth"  # not ep10
    assert np.array_equal(ticket.params["0.bias"], models[2, 5][0].bias.detach().numpy())


def test_a_training_checkpoint_of_open_lth(lottery):
    folder, masks, models = lottery
    state = {f"model.{name}": tensor for name, tensor in models[2, 5].state_dict().items()}
    state |= {f"mask_{n.replace('.', '___')}": m.float() for n, m in masks.items()}
    torch.save(
        {"ep": 2, "it": 5, "model_state_dict": state, "logger": ""}, folder / "checkpoint.pth"
    )
    ticket = lt.from_open_lth(torch_net(), folder, weights="checkpoint")
    assert ticket.masks == {name: mask.numpy() for name, mask in masks.items()}
    assert ticket.provenance["rewind"]["kind"] == "present"


def test_a_folder_that_lacks_something_says_what_it_has(lottery, tmp_path):
    folder, _, _ = lottery
    with pytest.raises(CheckpointError, match=r"no model_ep3_it0\.pth.*model_ep0_it0\.pth"):
        lt.from_open_lth(torch_net(), folder, weights="model_ep3_it0")
    (folder / "mask.pth").unlink()
    with pytest.raises(CheckpointError, match=r"no mask\.pth.*model_ep0_it0\.pth"):
        lt.from_open_lth(torch_net(), folder)
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(CheckpointError, match=r"no mask\.pth.*\[\]"):
            lt.from_open_lth(torch_net(), tmp_path / place)


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        ({"fc.weight": torch.ones(5, 6)}, MatchError, r"\['fc\.weight'\].*6\.weight"),
        ({"6.weight": torch.ones(6, 5)}, MatchError, r"6\.weight.*\(6, 5\).*\(5, 6\)"),
        ({"6.weight": torch.full((5, 6), 2)}, CheckpointError, r"6\.weight.*neither 0 nor 1"),
    ],
)
def test_masks_that_do_not_fit(lottery, change, error, facts, untouched):
    folder, masks, _ = lottery
    torch.save({n: m.int() for n, m in {**masks, **change}.items()}, folder / "mask.pth")
    with pytest.raises(error, match=facts):
        lt.from_open_lth(untouched(torch_net()), folder)


def test_the_dense_step_of_open_lth_is_no_ticket(lottery):
    folder, masks, _ = lottery
    torch.save({n: torch.ones_like(m).int() for n, m in masks.items()}, folder / "mask.pth")
    with pytest.raises(NothingPrunedError, match="keep every weight"):
        lt.from_open_lth(torch_net(), folder)


# Keras checkpoints


def trained(model, updates=2):
    """A compiled model whose optimizer has a state."""
    model.compile("adam", "mse")
    model.fit(np.moveaxis(X, 1, -1), np.zeros((6, 5)), epochs=updates, verbose=0)
    return model


@pytest.fixture(scope="module")
def sparse_keras():
    model = trained(keras_net())
    with lt.prune(model, 0.6) as hold:
        masks = hold.masks
    return model, masks


def save_keras(model, path):
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.suffix == ".safetensors":
        save_file({variable.path: np.asarray(variable.value) for variable in model.weights}, path)
    else:
        model.save(path)
    return path


KERAS_SUFFIXES = [".weights.h5", ".keras", ".h5", ".safetensors"]


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES)
def test_keras_checkpoints(suffix, sparse_keras, untouched, tmp_path):
    model, masks = sparse_keras
    path = save_keras(model, tmp_path / f"net{suffix}")
    target = untouched(trained(keras_net(9), 1))
    ticket = lt.from_checkpoint(target, path)
    assert ticket.masks == masks
    with lt.hold(model):
        expected = lt.Ticket.from_model(model).weights()
    assert all(np.array_equal(ticket.weights()[n], array) for n, array in expected.items())
    told = ticket.provenance["converted_from"]
    assert told == {"format": "checkpoint", "file": path.name, "masks": "zeros"}
    assert not ticket.why_not_portable()


def test_keras_arrays_by_either_name(sparse_keras, untouched):
    model, masks = sparse_keras
    by_path = {variable.path: np.asarray(variable.value) for variable in model.weights}
    ours = {name.partition("/")[2]: array for name, array in by_path.items()}
    target = untouched(keras_net(3))
    assert lt.from_checkpoint(target, by_path).masks == masks
    assert lt.from_checkpoint(target, ours).masks == masks


def test_weights_that_keras_itself_would_leave_over_are_refused(sparse_keras, untouched, tmp_path):
    path = save_keras(sparse_keras[0], tmp_path / "net.weights.h5")
    small = keras.Sequential([
        L.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(),
        L.Dense(6),
    ])  # fmt: skip
    small.load_weights(path)  # Keras does not mind
    with pytest.raises(MatchError, match=r"unexpected in the checkpoint \['layers/dense_1"):
        lt.from_checkpoint(untouched(small), path)


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES)
def test_another_keras_model_is_refused(suffix, sparse_keras, untouched, tmp_path):
    path = save_keras(sparse_keras[0], tmp_path / f"net{suffix}")
    wide = keras.Sequential([
        L.Input((8, 8, 3)), L.Conv2D(4, 3, name="a"), L.BatchNormalization(name="b"), L.ReLU(),
        L.Flatten(), L.Dropout(0.5), L.Dense(7, name="c"), L.Dense(5, name="d"),
    ])  # fmt: skip
    with pytest.raises(MatchError, match=r"\(144, 6\)"):
        lt.from_checkpoint(untouched(wide), path)


def test_the_config_of_a_keras_file_is_never_looked_at(sparse_keras, tmp_path):
    path = save_keras(sparse_keras[0], tmp_path / "net.keras")
    forged = tmp_path / "forged.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) if name.endswith(".h5") else b"no JSON at all")
    assert lt.from_checkpoint(keras_net(2), forged).masks == sparse_keras[1]


def forged_h5(path, kind, good):
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["layers"] = h5py.ExternalLink(good, "layers")
        elif kind == "soft link":
            file["layers"] = h5py.SoftLink("/elsewhere")
        elif kind == "external data":
            file.create_dataset("a", (4,), "f4", external=[(str(good), 0, 16)])
        elif kind == "virtual data":
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource(str(good), "layers/conv2d/vars/1", (4,))
            file.create_virtual_dataset("a", layout)
        elif kind == "bomb":
            file.create_dataset("a", (10**11,), "f4", chunks=(10**4,))
        elif kind == "loop":
            group = file.create_group("a")
            group["b"] = group["c"] = file["/"]


FORGED = ["external link", "soft link", "external data", "virtual data", "bomb", "loop"]


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
@pytest.mark.parametrize("kind", FORGED)
def test_forged_hdf5_files_are_refused(kind, suffix, sparse_keras, untouched, tmp_path):
    good = save_keras(sparse_keras[0], tmp_path / "good.weights.h5")
    path = tmp_path / f"forged{suffix}"
    forged_h5(tmp_path / "inner.h5", kind, good)
    if suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "inner.h5", "model.weights.h5")
    else:
        (tmp_path / "inner.h5").rename(path)
    with pytest.raises(CheckpointError, match=rf"forged\{suffix}"):
        lt.from_checkpoint(untouched(keras_net(1)), path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(80 << 20))
    with pytest.raises(CheckpointError, match=r"bomb\.keras.*83,886,080"):
        lt.from_checkpoint(keras_net(), path)


@pytest.mark.parametrize("suffix", KERAS_SUFFIXES)
@pytest.mark.parametrize("size", [0, 30, 9000])
def test_damaged_keras_files_are_refused(size, suffix, sparse_keras, untouched, tmp_path):
    path = save_keras(sparse_keras[0], tmp_path / f"net{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: min(size, len(content) - 100)])
    with pytest.raises(CheckpointError, match=rf"net\{suffix}"):
        lt.from_checkpoint(untouched(keras_net(1)), path)


def test_a_dense_keras_checkpoint_is_no_ticket(untouched, tmp_path):
    path = save_keras(keras_net(4), tmp_path / "net.weights.h5")
    with pytest.raises(NothingPrunedError):
        lt.from_checkpoint(untouched(keras_net()), path)


def test_unknown_keras_endings(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\.weights\.h5, \.keras"):
        lt.from_checkpoint(keras_net(), tmp_path / "a.ckpt")


# TensorFlow Model Optimization

WRAPPER = "prune_low_magnitude_"


def tfmot_net(names=("c", "n", "w", "f", "d")):
    conv, norm, depthwise, hidden, out = names
    return keras.Sequential([
        L.Input((6, 6, 2)), L.Conv2D(4, 3, name=conv), L.BatchNormalization(name=norm),
        L.DepthwiseConv2D(2, name=depthwise), L.Flatten(), L.Dense(6, name=hidden),
        L.Dense(5, name=out),
    ])  # fmt: skip


def tfmot_variables(model, masks, *, old=False, pretrained=False):
    """Variables as its wrappers name them, old releases and new, built by them or before."""
    found = {}
    for layer in model.layers:
        wrapper = f"{WRAPPER}{layer.name}"
        inner = layer.name if pretrained else wrapper
        for variable in layer.weights:
            odd = isinstance(layer, L.DepthwiseConv2D) and variable.name == "kernel"
            name = "depthwise_kernel" if odd else variable.name
            found[f"{inner}/{name}:0"] = np.asarray(variable.value)
        if layer.name in masks:
            stem = f"{wrapper}/" if old else f"{wrapper}/{inner}/kernel:0_"
            found[f"{stem}mask:0"] = masks[layer.name].astype(np.float32)
            found[f"{stem}threshold:0"] = np.float32(0.1)
        found[f"{wrapper}/pruning_step:0"] = np.int64(12)
    return found


@pytest.fixture
def wrapped():
    keras.utils.set_random_seed(0)
    model, rng = tfmot_net(), np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.random(variable.shape) + 0.1)
    masks = {n: rng.random(model.get_layer(n).kernel.shape) > 0.4 for n in ("c", "f", "d")}
    kernel = np.asarray(model.get_layer("d").kernel.value).copy()
    kernel[0] = 0.0  # kept or not, by the mask alone
    model.get_layer("d").kernel.assign(kernel)
    return model, masks


def check_tfmot(ticket, model, masks):
    plain = tfmot_net()
    ticket.apply(plain).release()
    assert set(ticket.masks) == {f"{name}.weight" for name in masks}
    assert ticket.masks.kept == sum(int(mask.sum()) for mask in masks.values())
    for layer, twin in zip(model.layers, plain.layers, strict=True):
        for variable, found in zip(layer.weights, twin.weights, strict=True):
            expected = np.asarray(variable.value)
            if variable.name == "kernel" and layer.name in masks:
                expected = np.where(masks[layer.name], expected, 0)
            assert np.array_equal(np.asarray(found.value), expected)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("kind", ["variables", "save_weights", "save"])
def test_variables_of_tfmot(wrapped, old, pretrained, kind, untouched, tmp_path):
    model, masks = wrapped
    source = tfmot_variables(model, masks, old=old, pretrained=pretrained)
    if kind != "variables":
        path = tmp_path / "wrapped.h5"
        top = "model_weights/" if kind == "save" else ""
        with h5py.File(path, "w") as file:
            for name, value in source.items():
                layer = name.removeprefix(WRAPPER).partition("/")[0]
                file[f"{top}{WRAPPER}{layer}/{name}"] = value
            if kind == "save":
                file["optimizer_weights/adam/iter:0"] = 3
        source = path
    ticket = lt.from_tfmot(untouched(tfmot_net()), source)
    check_tfmot(ticket, model, masks)
    told = ticket.provenance["converted_from"]
    assert told["format"] == "tfmot"
    assert told.get("file") == (None if kind == "variables" else "wrapped.h5")
    assert np.array_equal(ticket.masks["d.weight"], masks["d"].T)


def test_layers_of_other_names_are_mapped(wrapped, untouched):
    model, masks = wrapped
    source = tfmot_variables(model, masks)
    target = untouched(tfmot_net(("c", "n", "w", "hidden", "out")))
    with pytest.raises(MatchError, match=r"missing.*hidden/kernel.*unexpected.*f/kernel"):
        lt.from_tfmot(target, source)
    ticket = lt.from_tfmot(target, source, mapping={"f": "hidden", "d": "out"})
    assert np.array_equal(ticket.masks["out.weight"], masks["d"].T)
    with pytest.raises(MatchError, match=r"'g'.*'f'"):
        lt.from_tfmot(target, source, mapping={"g": "hidden"})


def drop(name):
    return lambda found: found.pop(name)


def put(name, value):
    return lambda found: found.update({name: value})


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        (drop(f"{WRAPPER}d/bias:0"), MatchError, r"missing from the checkpoint \['d/bias'\]"),
        (put("e/kernel:0", np.ones(3)), MatchError, r"unexpected in the checkpoint \['e/kernel'\]"),
        (put(f"{WRAPPER}d/kernel:0", np.ones((6, 4))), CheckpointError, r"d/mask.*\(6, 5\)"),
        (
            put(f"{WRAPPER}d/mask:0", np.ones((4, 4))),
            CheckpointError,
            r"d/mask.*\(4, 4\).*\(6, 5\)",
        ),
        (put(f"{WRAPPER}d/mask:0", np.full((6, 5), 0.5)), CheckpointError, "neither 0 nor 1"),
        (put(f"{WRAPPER}d/twin:0", np.ones((6, 5))), CheckpointError, "fits .*d/kernel.*d/twin"),
        (put("d/kernel:0", np.ones((6, 5))), CheckpointError, "two variables.*d/kernel"),
    ],
)
def test_variables_that_do_not_fit(wrapped, change, error, facts, untouched):
    source = tfmot_variables(*wrapped, old=True)
    change(source)
    with pytest.raises(error, match=facts):
        lt.from_tfmot(untouched(tfmot_net()), source)


def test_variables_without_masks_are_told_apart(wrapped, tmp_path):
    model, masks = wrapped
    bare = {n: v for n, v in tfmot_variables(model, masks).items() if "mask" not in n}
    with pytest.raises(CheckpointError, match=r"none.*mask.*from_checkpoint"):
        lt.from_tfmot(tfmot_net(), bare)
    full = {name: np.ones_like(mask) for name, mask in masks.items()}
    with pytest.raises(NothingPrunedError):
        lt.from_tfmot(tfmot_net(), tfmot_variables(model, full))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{WRAPPER}c/{WRAPPER}c/kernel:0"] = np.ones(3)
    with pytest.raises(CheckpointError, match="from_tfmot"):
        lt.from_checkpoint(tfmot_net(), tmp_path / "a.h5")


# Back out


@pytest.fixture(scope="module")
def ticket():
    model = torch_net()
    prune_twice(model)
    return lt.from_pruned(model, example=EXAMPLE)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_ticket_as_a_torch_checkpoint(ticket, suffix, untouched, tmp_path):
    path = tmp_path / f"net{suffix}"
    lt.to_checkpoint(ticket, untouched(torch_net(9)), path)
    plain = torch_net(4)
    if suffix == ".safetensors":
        safetensors.torch.load_model(plain, str(path))
    else:
        plain.load_state_dict(torch.load(path, weights_only=True))
    for name, tensor in plain.state_dict().items():
        assert np.array_equal(tensor.numpy(), ticket.weights()[name])
    assert list(tmp_path.iterdir()) == [path]
    back = lt.from_checkpoint(torch_net(5), path, prunable=list(ticket.masks), example=EXAMPLE)
    assert back.masks == ticket.masks


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_a_torch_ticket_as_a_keras_checkpoint(ticket, suffix, untouched, tmp_path):
    path = tmp_path / f"net{suffix}"
    lt.to_checkpoint(ticket, untouched(trained(keras_net(9))), path)
    if suffix == ".keras":
        plain = keras.saving.load_model(path)
        assert float(np.asarray(plain.optimizer.iterations)) == 0  # its state was left out
    else:
        plain = keras_net(4)
        plain.load_weights(path)
    source = torch_net(2)
    with ticket.apply(source):
        expected = out_torch(source)
    np.testing.assert_allclose(out_keras(plain), expected, rtol=1e-4, atol=1e-5)
    masks = lt.from_checkpoint(keras_net(5), path).masks
    assert masks.total - masks.kept == ticket.masks.total - ticket.masks.kept
    assert list(tmp_path.iterdir()) == [path]


def test_pruned_in_torch_trained_on_in_keras(untouched):
    """The whole way: torch.nn.utils.prune, ticket, Keras, with equal outputs."""
    model = torch_net()
    prune_globally(model)
    model.eval()
    ticket = lt.from_pruned(untouched(model), example=EXAMPLE)
    twin = keras_net(7)
    with ticket.apply(twin) as hold:
        hold.check()
        np.testing.assert_allclose(out_keras(twin), out_torch_pruned(model), rtol=1e-4, atol=1e-5)
        trained(twin)
        hold.check()


def out_torch_pruned(model):
    with torch.no_grad():
        return model(torch.from_numpy(X)).numpy()


def test_from_keras_to_torch(sparse_keras, tmp_path):
    model, masks = sparse_keras
    path = save_keras(model, tmp_path / "net.weights.h5")
    ticket = lt.from_checkpoint(keras_net(3), path)
    lt.to_checkpoint(ticket, torch_net(3), tmp_path / "net.pt", example=EXAMPLE)
    plain = torch_net(4)
    plain.load_state_dict(torch.load(tmp_path / "net.pt"))
    np.testing.assert_allclose(out_torch(plain), out_keras(model), rtol=1e-4, atol=1e-5)
    zeros = sum(int((plain[i].weight == 0).sum()) for i in (0, 4, 6))
    assert zeros == masks.total - masks.kept


@pytest.mark.parametrize("name", ["net.h5", "net", "net.npz", "net.weights.h5"])
def test_endings_that_torch_does_not_write(ticket, name, untouched, tmp_path):
    with pytest.raises(CheckpointError, match=r"\.pt, \.pth, \.safetensors"):
        lt.to_checkpoint(ticket, untouched(torch_net()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_ticket_of_another_model_writes_nothing(ticket, untouched, tmp_path):
    other = untouched(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(MatchError):
        lt.to_checkpoint(ticket, other, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_failed_write_keeps_the_old_file(ticket, suffix, untouched, tmp_path, monkeypatch):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CheckpointError, match=rf"cannot write .*net\{suffix}.*No space"):
        lt.to_checkpoint(ticket, untouched(torch_net(1)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_take_no_file(ticket, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        lt.to_checkpoint(ticket, torch_net(), tmp_path / "folder.pt")
    with pytest.raises(CheckpointError, match=r"nowhere/a\.pt.*No such file"):
        lt.to_checkpoint(ticket, torch_net(), tmp_path / "nowhere" / "a.pt")


# Who can do what


def test_what_a_backend_does_not_read_is_said(tmp_path):
    with pytest.raises(CapabilityError, match=r"'keras'.*'open_lth'.*tfmot"):
        lt.from_open_lth(keras_net(), tmp_path)
    with pytest.raises(CapabilityError, match=r"'keras'.*'pruned'"):
        lt.from_pruned(keras_net())
    with pytest.raises(CapabilityError, match=r"'torch'.*'tfmot'.*open_lth"):
        lt.from_tfmot(torch_net(), {})
    with pytest.raises(CapabilityError, match="'checkpoints'"):
        lt.from_checkpoint(object(), {}, backend=ReferenceBackend())


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_backends_with_checkpoints_have_its_methods(backend):
    driver = backend_named(backend)
    assert "checkpoints" in driver.capabilities
    assert driver.tools <= {"pruned", "open_lth", "tfmot"}
    assert all(suffix.startswith(".") for suffix in driver.writes)
