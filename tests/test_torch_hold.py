"""Holding in PyTorch: pruned weights are exactly +0.0 after every update, whoever makes it."""

import copy
import gc
import io
import pickle
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ltcore as lt  # noqa: E402
from ltcore.errors import HoldError, MaskError  # noqa: E402
from ltcore_torch import _steps  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


def mlp(seed=0, bias=True):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16, bias=bias), torch.nn.Tanh(), torch.nn.Linear(16, 3, bias=bias)
    )


def data(n=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def loss_of(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y)


def steps(model, optimizer, n, x=None, y=None, clip=None, accumulate=1):
    """The plain loop of a user who has never heard of ltcore."""
    x, y = data() if x is None else (x, y)
    for _ in range(n):
        optimizer.zero_grad()
        for _ in range(accumulate):
            (loss_of(model, x, y) / accumulate).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        optimizer.step(closure if isinstance(optimizer, torch.optim.LBFGS) else None)


def pruned_values(model, hold):
    live = dict(model.named_parameters())
    return np.concatenate(
        [live[name].detach().float().numpy()[~hold.masks[name]] for name in hold.masks]
    )


def assert_held(model, hold):
    values = pruned_values(model, hold)
    assert values.size, "the test prunes nothing"
    assert not values.any(), "a pruned weight is not zero"
    assert not np.signbit(values).any(), "a pruned weight is -0.0"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_any_optimizer_made_before_or_after_warm(name, when):
    model = mlp(bias=name != "muon")
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    steps(model, optimizer, 5)  # warm: momentum of the weights that go
    hold = lt.prune(model, sparsity=0.5)
    if when == "after":
        optimizer = OPTIMIZERS[name](list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        steps(model, optimizer, 1)
        assert_held(model, hold)
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    for param, state in optimizer.state.items():
        held = {id(p): hold.masks[n] for n, p in model.named_parameters() if n in hold.masks}
        if id(param) in held and name != "lbfgs":
            for value in state.values():
                if torch.is_tensor(value) and value.shape == param.shape and name != "muon":
                    start = 0.0
                    assert (value.numpy()[~held[id(param)]] == start).all(), "a slot can revive"


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_trajectory_is_that_of_a_network_without_the_pruned_weights(clip, accumulate):
    """The kept weights move as if the pruned ones were not there: also under a clipped norm."""
    held, reference = mlp(), mlp()
    warm = torch.optim.SGD(held.parameters(), lr=0.1, momentum=0.9)
    steps(held, warm, 3)
    hold = lt.prune(held, sparsity=0.6)
    reference.load_state_dict(held.state_dict())
    masks = {name: torch.from_numpy(hold.masks[name].copy()) for name in hold.masks}
    optimizer = torch.optim.SGD(held.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x, y = data()
    for _ in range(6):
        steps(held, optimizer, 1, clip=clip, accumulate=accumulate)
        other.zero_grad()
        params = {n: p * masks[n] if n in masks else p for n, p in reference.named_parameters()}
        out = torch.func.functional_call(reference, params, (x,))
        torch.nn.functional.cross_entropy(out, y).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        other.step()
    for name, param in held.named_parameters():
        torch.testing.assert_close(param, dict(reference.named_parameters())[name] * (
            masks.get(name, torch.tensor(True))), rtol=2e-6, atol=1e-7)  # fmt: skip


def test_nan_and_infinite_gradients_of_pruned_weights_do_not_leak():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_of(model, *data()).backward()
    mask = torch.from_numpy(hold.masks["0.weight"].copy())
    model[0].weight.grad[~mask] = float("nan")
    optimizer.step()
    assert_held(model, hold)
    assert torch.isfinite(optimizer.state[model[0].weight]["momentum_buffer"]).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    model = mlp()
    if not autocast:
        model = model.to(torch.bfloat16)
    hold = lt.prune(model, sparsity=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = data()
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, x if autocast else x.bfloat16(), y)
        loss.backward()
        optimizer.step()
        assert_held(model, hold)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = mlp().to(dtype)
    hold = lt.prune(model, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, data()[0].to(dtype), data()[1]).backward()
        optimizer.step()
    assert_held(model, hold)


def test_a_dtype_change_while_held():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    model.double()
    steps(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, *(t if t.dtype == torch.int64
          else t.double() for t in data()))  # fmt: skip
    assert_held(model, hold)


@pytest.mark.parametrize("compile_first", [True, False])
def test_compiled_model(compile_first):
    torch._dynamo.reset()
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model, optimizer, 2)
    compiled = torch.compile(model, backend="aot_eager") if compile_first else None
    hold = lt.prune(compiled if compile_first else model, sparsity=0.5)
    compiled = compiled or torch.compile(model, backend="aot_eager")
    for _ in range(3):
        steps(compiled, optimizer, 1)
        assert_held(model, hold)
    assert lt.held(model) is lt.held(compiled) is hold
    assert list(hold.masks) == ["0.weight", "2.weight"]


def test_hand_written_updates_are_masked_at_the_next_forward():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1.0)
    with pytest.raises(HoldError, match=r"0\.weight.*enforce"):
        hold.check()
    model(data()[0])
    hold.check()


def test_loaded_and_replaced_weights_are_masked_at_the_next_forward():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    model.load_state_dict(mlp(seed=5).state_dict())
    model(data()[0])
    assert_held(model, hold)
    model[0].weight = torch.nn.Parameter(torch.ones(16, 6))
    model(data()[0])
    assert_held(model, hold)
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 2)
    assert_held(model, hold)


def test_two_holds_are_never_silent():
    model = mlp()
    first = lt.prune(model, sparsity=0.5)
    half = first.masks
    with pytest.raises(HoldError, match="held already.*replace.*tighten"):
        lt.hold(model)
    assert first.masks is half
    flipped = lt.Masks({name: ~mask for name, mask in half.items()})
    assert lt.hold(model, flipped, existing="replace") is first
    assert first.masks == flipped
    assert lt.hold(model, half, existing="tighten") is first
    assert first.masks.kept == 0
    assert not pruned_values(model, first).any()


def test_pruning_further_tightens():
    model = mlp()
    first = lt.prune(model, sparsity=0.5).masks
    second = lt.prune(model, sparsity=0.7)
    assert second.masks.nested_in(first)
    assert second.masks.total - second.masks.kept == round(0.7 * second.masks.total)


def test_release_and_hold_again():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    hold.release()
    hold.release()
    assert lt.held(model) is None
    assert not model._forward_pre_hooks
    assert model[0].weight._post_accumulate_grad_hooks in (None, {})
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 3)
    assert pruned_values(model, hold).any(), "released weights must train"
    with pytest.raises(HoldError, match="released"):
        hold.update(hold.masks)
    again = lt.hold(model, hold.masks)
    assert_held(model, again)


def test_context_manager_releases():
    model = mlp()
    with lt.prune(model, sparsity=0.5) as hold:
        assert lt.held(model) is hold
    assert lt.held(model) is None


def test_hold_nonzero_takes_masks_from_zeros():
    model = mlp()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0.0
    with lt.hold(model, masks="nonzero") as hold:
        steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 3)
        assert_held(model, hold)
        assert hold.masks.kept == 16 * 3 + 3 * 16


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "save"])
def test_copies_are_plain_models(copier):
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    if copier == "deepcopy":
        twin = copy.deepcopy(model)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        stream = io.BytesIO()
        torch.save(model, stream)
        assert b"ltcore" not in stream.getvalue(), "loading the copy must not need ltcore"
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    assert lt.held(twin) is None
    assert lt.held(model) is hold
    x, _ = data()
    assert torch.equal(twin(x), model(x))
    steps(twin, torch.optim.AdamW(twin.parameters(), lr=0.1), 2)
    assert pruned_values(twin, hold).any(), "a copy is not held"
    assert_held(model, hold)


def test_checkpoints_written_while_held_load_into_a_plain_model():
    model = mlp()
    keys = list(model.state_dict())
    hold = lt.prune(model, sparsity=0.5)
    assert list(model.state_dict()) == keys
    plain = mlp(seed=3)
    plain.load_state_dict(model.state_dict())
    assert_held(plain, hold)


@pytest.mark.parametrize("make", [mlp, lambda: torch.nn.Linear(6, 3)])
def test_hold_lives_and_dies_with_the_model(make):
    model = make()
    lt.prune(model, sparsity=0.5)  # nobody keeps the handle
    gc.collect()
    assert lt.held(model) is not None
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 2)
    lt.held(model).check()
    gone, listeners = weakref.ref(model), len(_steps._live())
    del model
    gc.collect()
    assert gone() is None, "a hold must not keep its model alive"
    assert len(_steps._live()) < listeners


def test_two_models_with_one_optimizer():
    first, second = mlp(0), mlp(1)
    holds = [lt.prune(first, sparsity=0.3), lt.prune(second, sparsity=0.7)]
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (loss_of(first, *data()) + loss_of(second, *data())).backward()
        optimizer.step()
    assert_held(first, holds[0])
    assert_held(second, holds[1])
    holds[0].release()
    steps(first, optimizer, 2)
    assert pruned_values(first, holds[0]).any()
    assert_held(second, holds[1])


def test_shared_weights_are_one_parameter():
    model = mlp()
    model.tied = torch.nn.Linear(6, 16)
    model.tied.weight = model[0].weight
    hold = lt.prune(model, sparsity=0.5)
    assert list(hold.masks) == ["0.weight", "2.weight"]
    _, role = hold.structure.by_name["0.weight"]
    assert role.aliases == ("tied.weight",)
    assert hold.masks.total == 16 * 6 + 3 * 16


def test_frozen_parameters_can_be_held_and_thawed():
    model = mlp()
    model[0].weight.requires_grad_(False)
    hold = lt.prune(model, sparsity=0.5)
    model[0].weight.requires_grad_(True)
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 3)
    assert_held(model, hold)


def test_gradients_of_a_weight_thawed_after_the_hold_are_masked_from_the_first_backward_on():
    model = mlp()
    model[0].weight.requires_grad_(False)
    hold = lt.prune(model, sparsity=0.5)
    model[0].weight.requires_grad_(True)
    loss_of(model, *data()).backward()
    assert not model[0].weight.grad.numpy()[~hold.masks["0.weight"]].any()
    assert model[0].weight.grad.any()


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_double_backward_through_a_held_gradient():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    loss_of(model, *data()).backward(create_graph=True)
    penalty = sum((p.grad**2).sum() for p in model.parameters())
    penalty.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_held(model, hold)
    for param in model.parameters():
        param.grad = None


def test_masks_for_nothing_or_another_shape_are_refused_and_change_nothing():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match="nope"):
        lt.hold(model, {"nope": np.ones(3, bool)})
    with pytest.raises(MaskError, match=r"0\.weight.*\(3,\).*\(16, 6\)"):
        lt.hold(model, {"0.weight": np.zeros(3, bool)})
    with pytest.raises(MaskError, match="empty"):
        lt.hold(model, {})
    with pytest.raises(MaskError, match="float64"):
        lt.hold(model, {"0.weight": np.zeros((16, 6))})
    assert lt.held(model) is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nested_blocks_release_with_the_outermost():
    model = mlp()
    with lt.prune(model, sparsity=0.3) as outer:
        with lt.prune(model, sparsity=0.6):
            assert outer.masks.sparsity == pytest.approx(0.6, abs=0.01)
        assert lt.held(model) is outer
        assert outer.masks.sparsity == pytest.approx(0.6, abs=0.01)
    assert lt.held(model) is None


def test_functional_calls_do_not_write_to_the_users_tensors():
    model = mlp()
    hold = lt.prune(model, sparsity=0.5)
    lent = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    torch.func.functional_call(model, lent, (data()[0],))
    assert all((t == 1).all() for t in lent.values())
    assert_held(model, hold)


def test_complex_weights_are_refused_and_leave_nothing():
    from ltcore.errors import CapabilityError

    model = torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.complex64), torch.nn.Linear(3, 3))
    assert list(lt.prune(model, 0.5).masks) == ["1.weight"]
    lt.held(model).release()
    with pytest.raises(CapabilityError, match="complex64"):
        lt.hold(model, {"0.weight": np.zeros((3, 3), bool)})
    assert not model._forward_pre_hooks
    assert lt.held(model) is None


def test_a_dead_model_does_not_disturb_other_optimizers():
    """Hooks are not removed while torch goes through them."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    other = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        handle = lt.prune(mlp(), sparsity=0.5)
        gc.collect()
        del handle
        model = mlp()
        before = model[0].weight.detach().clone()
        steps(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
        assert not torch.equal(model[0].weight, before)
    finally:
        other.remove()


def test_bad_words_change_nothing():
    model = mlp()
    lt.prune(model, sparsity=0.3)
    ticket = lt.Ticket.from_model(model)
    before = copy.deepcopy(model.state_dict())
    target = mlp(seed=9)
    for model_, options in ((target, {"existing": "bogus"}), (target, {"weights": "bogus"})):
        with pytest.raises(ValueError, match="bogus"):
            ticket.apply(model_, **options)
    assert torch.equal(target[0].weight, mlp(seed=9)[0].weight)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_report_says_what_is_outside_the_masks():
    report = lt.prune(mlp(), sparsity=0.5).report()
    assert repr(report) == "Report(kept=72, total=144, parameters=2)"
    text = str(report)
    assert "outside the masks: 19 trained weights in 2 parameters" in text


def test_masks_that_keep_everything_cost_nothing_until_they_prune():
    model = mlp()
    whole = {"0.weight": np.ones((16, 6), bool), "2.weight": np.ones((3, 16), bool)}
    hold = lt.hold(model, whole)
    assert not model[0].weight._post_accumulate_grad_hooks
    hold.update(lt.Masks({**whole, "0.weight": np.eye(16, 6, dtype=bool)}))
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 3)
    assert_held(model, hold)
    hold.update(lt.Masks(whole))
    steps(model, torch.optim.AdamW(model.parameters(), lr=0.1), 1)
    assert model[0].weight.count_nonzero() > 16
