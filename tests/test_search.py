"""The search: rewinding bit for bit, in the user's own loop, with nothing of theirs changed."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ltcore as lt  # noqa: E402
from ltcore.errors import HoldError, InvalidValueError, NonFiniteError  # noqa: E402

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(2))


def convnet(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(216, 4),
    )  # fmt: skip


def state(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


class Loop:
    """A user's training code that also writes down what it was given."""

    def __init__(self, updates=12, optimizer=None):
        self.updates = updates
        self.optimizer = optimizer
        self.starts, self.trace = [], []

    def __call__(self, model):
        self.starts.append(state(model))
        optimizer = self.optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        states = []
        for step in range(self.updates):
            batch = slice(8 * (step % 8), 8 * (step % 8) + 8)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X[batch]), Y[batch]).backward()
            optimizer.step()
            states.append(state(model))
        self.trace.append(states)


class Resuming(Loop):
    def __call__(self, model, start_step):
        self.began = [*getattr(self, "began", []), start_step]
        super().__call__(model)


@pytest.mark.parametrize("rewind_to", [0, 5])
def test_every_round_starts_from_the_rewind_point_bit_for_bit(rewind_to):
    """Rounds 1, 2 and 3: parameters, batch-norm statistics and the integer counter."""
    model, loop = convnet(), Loop()
    search = lt.find_ticket(
        model, loop, rounds=3, rate=0.3, rewind_to=rewind_to, evaluate=lambda m: 0.0
    )
    point = loop.trace[0][rewind_to - 1] if rewind_to else loop.starts[0]
    assert len(loop.starts) == 4
    for index in (1, 2, 3):
        masks = search.rounds[index].masks
        for name, tensor in loop.starts[index].items():
            expected = point[name]
            if name in masks:
                expected = torch.where(torch.from_numpy(masks[name].copy()), expected, 0.0)
            assert torch.equal(tensor, expected), (index, name)
            assert tensor.numpy().tobytes() == expected.numpy().tobytes(), (index, name)
    assert not torch.equal(loop.trace[0][-1]["1.running_mean"], point["1.running_mean"])


def test_each_round_prunes_what_it_should_and_nests():
    model, loop = convnet(), Loop()
    search = lt.find_ticket(model, loop, rounds=3, rate={"*": 0.2, "@output": 0.1})
    kept = [54, 43, 34, 27], [864, 778, 700, 630]
    for round_, conv, dense in zip(search.rounds, *kept, strict=True):
        assert round_.masks.counts == {"0.weight": (conv, 54), "4.weight": (dense, 864)}
        assert (round_.kept, round_.total) == (conv + dense, 918)
    for earlier, later in zip(search.rounds, search.rounds[1:], strict=False):
        assert later.masks.nested_in(earlier.masks)


def test_scores_come_from_weights_after_the_last_update():
    model, loop = convnet(), Loop()
    search = lt.find_ticket(model, loop, rounds=1, sparsity=0.5, scope="layer")
    final = loop.trace[0][-1]
    for name in ("0.weight", "4.weight"):
        mask = search.ticket.masks[name]
        magnitude = np.abs(final[name].numpy())
        assert magnitude[mask].min() >= magnitude[~mask].max()


def test_weights_stay_pruned_while_each_round_trains():
    model, loop = convnet(), Loop()
    search = lt.find_ticket(model, loop, rounds=2, rate=0.5, evaluate=lambda m: 0.0)
    for index in (1, 2):
        for states in loop.trace[index]:
            for name, mask in search.rounds[index].masks.items():
                assert not states[name].numpy()[~mask].any()
    assert lt.held(model) is search.hold
    assert search.hold.masks == search.ticket.masks
    assert all(torch.equal(v, loop.trace[-1][-1][k]) for k, v in model.state_dict().items())


def test_the_last_round_trains_only_to_be_evaluated():
    loop = Loop()
    model = convnet()
    search = lt.find_ticket(model, loop, rounds=2, rate=0.2)
    assert len(loop.starts) == 2
    assert search.rounds[-1].steps == 0
    weights = search.ticket.weights()
    assert all(np.array_equal(v.numpy(), weights[k]) for k, v in model.state_dict().items())


def test_train_with_start_step_resumes_and_provenance_says_so():
    loop = Resuming()
    search = lt.find_ticket(convnet(), loop, rounds=2, rate=0.2, rewind_to=5)
    assert loop.began == [0, 5]
    assert search.ticket.provenance["rewind"] == {"kind": "step", "step": 5, "schedule": "resumed"}
    plain = lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, rewind_to=5)
    assert plain.ticket.provenance["rewind"]["schedule"] == "restarted"


def test_an_optimizer_carried_over_starts_every_round_without_state():
    """Same rounds whether the user makes an optimizer each time or one for all."""
    one, many = convnet(), convnet()
    shared = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9)
    first = lt.find_ticket(one, loop := Loop(optimizer=shared), rounds=2, rate=0.3, rewind_to=3)
    second = lt.find_ticket(many, other := Loop(), rounds=2, rate=0.3, rewind_to=3)
    for ours, theirs in zip(loop.trace, other.trace, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)
    assert first.ticket.masks == second.ticket.masks


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        search = lt.find_ticket(convnet(), Loop(), rounds=2, rate=0.3, rewind_to=3, seed=7)
        search.ticket.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_keep_trained_and_reinit_policies():
    loop = Loop()
    lt.find_ticket(convnet(), loop, rounds=1, rate=0.2, rewind_to="trained", evaluate=lambda m: 0.0)
    biases = [k for k in loop.starts[0] if "bias" in k or "running" in k]
    assert all(torch.equal(loop.starts[1][k], loop.trace[0][-1][k]) for k in biases)
    fresh = Loop()
    lt.find_ticket(convnet(), fresh, rounds=2, rate=0.2, rewind_to="reinit", seed=1)
    again = Loop()
    lt.find_ticket(convnet(), again, rounds=2, rate=0.2, rewind_to="reinit", seed=1)
    drawn, kept = fresh.starts[1]["4.weight"], again.starts[1]["4.weight"]
    assert torch.equal(drawn, kept)
    assert not torch.equal(drawn, fresh.starts[0]["4.weight"])
    alive = drawn[drawn != 0]
    bound = 1 / 216**0.5  # torch's own rule for this layer
    assert 0.8 * bound < alive.abs().max() <= bound
    assert torch.equal(fresh.starts[1]["1.running_mean"], torch.zeros(6))


def test_reinit_leaves_the_global_random_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    model = convnet(0)
    ticket = lt.find_ticket(model, Loop(1), rounds=1, rate=0.2).ticket
    torch.manual_seed(11)
    ticket.apply(model, weights="reinit", existing="replace")
    assert torch.equal(torch.rand(3), expected)


def test_iter_rounds_is_the_same_a_round_at_a_time():
    whole = lt.find_ticket(convnet(), Loop(), rounds=3, rate=0.2)
    model, loop = convnet(), Loop()
    seen = []
    for round_ in lt.iter_rounds(model, loop, rounds=3, rate=0.2):
        seen.append(round_)
        if round_.index == 2:
            break
    assert [r.masks for r in seen] == [r.masks for r in whole.rounds[:3]]
    assert len(loop.starts) == 3


def test_metrics_lineage_and_provenance():
    search = lt.find_ticket(
        convnet(), Loop(), rounds=2, rate=0.25, evaluate=lambda m: {"accuracy": 0.5, "loss": 1}
    )
    for index, round_ in enumerate(search.rounds):
        story = round_.ticket.provenance
        assert story["round"] == index
        assert story["metrics"] == round_.metrics == {"accuracy": 0.5, "loss": 1.0}
        assert story["steps"] == round_.steps == 12
        assert story["parent"] == (search.rounds[index - 1].ticket.id if index else None)
    assert search.ticket.provenance["goal"] == {"rate": 0.25}
    assert search.ticket.provenance["criterion"] == "magnitude"


def test_the_first_input_of_training_is_example_enough():
    search = lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2)
    structure = search.ticket.structure
    assert not structure.untraced
    assert structure.by_name["4.weight"][0].in_group == (("C", 6), ("S0", 6), ("S1", 6))
    assert search.ticket.probe is not None
    given = lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, example=X[:1])
    assert given.ticket == search.ticket


def test_snapshots_do_not_move_with_training():
    model, loop = convnet(), Loop()
    rounds = lt.iter_rounds(model, loop, rounds=2, rate=0.2, rewind_to=4)
    first = next(rounds)
    before = {k: v.copy() for k, v in first.ticket.params.items()}
    next(rounds)
    assert all(np.array_equal(before[k], v) for k, v in first.ticket.params.items())


def test_criteria_that_need_gradients_or_initial_values():
    @lt.criterion("test-saliency", needs={"gradient", "initial", "rewind"})
    def saliency(param):
        assert param.initial.shape == param.weight.shape == param.rewind.shape
        return abs(param.weight * param.gradient)

    batches = [(X[:32], Y[:32]), (X[32:], Y[32:])]
    model, loop = convnet(), Loop()
    search = lt.find_ticket(
        model, loop, rounds=1, sparsity=0.5, criterion="test-saliency",
        batches=batches, loss=torch.nn.functional.cross_entropy,
    )  # fmt: skip
    twin = convnet()
    twin.load_state_dict(loop.trace[0][-1])
    twin.eval()
    loss = sum(torch.nn.functional.cross_entropy(twin(x), y) for x, y in batches) / 2
    loss.backward()
    scores = {n: (p * p.grad).abs().detach().numpy() for n, p in twin.named_parameters()}
    flat = np.concatenate([scores[n].ravel() for n in search.ticket.masks])
    mask = np.concatenate([search.ticket.masks[n].ravel() for n in search.ticket.masks])
    assert flat[mask].min() >= flat[~mask].max()
    assert search.ticket.provenance["criterion"] == "test-saliency"


def test_gradients_leave_the_model_as_it_was():
    model = convnet()
    before = state(model)
    lt.prune(
        model, 0.0001, criterion="test-gradient", batches=[(X, Y)],
        loss=torch.nn.functional.cross_entropy,
    )  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@lt.criterion("test-gradient", needs={"gradient"})
def _saliency(param):
    return abs(param.gradient)


def test_bad_input_is_refused_before_anything_is_trained():
    loop = Loop()
    model = convnet()
    before = state(model)
    for options, message in (
        ({"rounds": 2}, "rate is None and sparsity is None"),
        ({"rate": 0.2, "sparsity": 0.9}, "give one of them"),
        ({"rounds": 0, "rate": 0.2}, "rounds is 0"),
        ({"rounds": 2, "rate": 1.5}, "rate is 1.5"),
        ({"rounds": 2, "rate": 0.2, "rewind_to": -3}, "rewind_to is -3"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            lt.find_ticket(model, loop, **options)
    for options in ({"criterion": "no-such"}, {"scope": "no-such"}, {"rewind_to": "no-such"}):
        with pytest.raises(lt.LtcoreError, match="no-such.*There are"):
            lt.find_ticket(model, loop, rounds=1, rate=0.2, **options)
    assert not loop.starts
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_rewind_step_that_training_never_reaches():
    with pytest.raises(InvalidValueError, match="step 500.*made 12 optimizer updates"):
        lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, rewind_to=500)


def test_a_held_model_is_not_searched_silently():
    model = convnet()
    lt.prune(model, sparsity=0.5)
    with pytest.raises(HoldError, match="held already.*release"):
        lt.find_ticket(model, Loop(), rounds=1, rate=0.2)


def test_criteria_with_missing_signals_say_what_to_give():
    with pytest.raises(InvalidValueError, match="test-gradient.*batches=.*loss="):
        lt.prune(convnet(), 0.5, criterion="test-gradient")
    rule = lt.criterion("test-initial", needs={"initial"})(lambda p: abs(p.initial))
    with pytest.raises(InvalidValueError, match="needs.*initial.*find_ticket"):
        lt.prune(convnet(), 0.5, criterion=rule)


def test_nan_weights_name_the_parameter_and_leave_the_model():
    model = convnet()
    with torch.no_grad():
        model[4].weight[0, 3] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="'4.weight'"):
        lt.prune(model, sparsity=0.5)
    assert lt.held(model) is None
    assert torch.equal(model[0].weight, before["0.weight"])


def test_layers_left_without_survivors_are_reported():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"no weight survives in.*1\.weight"):
        hold = lt.prune(model, sparsity=0.9)
    assert hold.report().emptied == ("1.weight",)
    assert "no survivors in: 1.weight" in str(hold.report())


def test_snapshots_are_read_only_for_criteria_and_users():
    @lt.criterion("test-writes", needs={"initial"})
    def rule(param):
        param.initial[...] = 0
        return abs(param.weight)

    with pytest.raises(ValueError, match="read-only"):
        lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, criterion="test-writes")
    ticket = next(lt.iter_rounds(convnet(), Loop(), rounds=1, rate=0.2)).ticket
    with pytest.raises(ValueError, match="read-only"):
        ticket.params["4.weight"][...] = 0


def test_batches_that_are_empty_or_can_be_read_once():
    options = {"criterion": "test-gradient", "loss": torch.nn.functional.cross_entropy}
    with pytest.raises(InvalidValueError, match="batches is empty"):
        lt.prune(convnet(), 0.5, batches=[], **options)
    with pytest.raises(InvalidValueError, match="batches is an iterator"):
        lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, batches=iter([(X, Y)]), **options)
    lt.prune(convnet(), 0.5, batches=iter([(X, Y)]), **options)


@pytest.mark.parametrize(
    "train", [lambda model, epochs: None, lambda: None, lambda model, *, lr: None]
)
def test_train_functions_that_cannot_be_called_are_refused_first(train):
    with pytest.raises(InvalidValueError, match=r"train has the signature.*train\(model\)"):
        lt.find_ticket(convnet(), train, rounds=1, rate=0.2)


def test_train_may_take_start_step_by_keyword_only():
    began = []

    def train(model, *, start_step):
        began.append(start_step)
        Loop()(model)

    lt.find_ticket(convnet(), train, rounds=2, rate=0.2, rewind_to=4)
    assert began == [0, 4]


def test_training_that_updates_nothing_is_a_warning():
    with pytest.warns(UserWarning, match="no optimizer update"):
        lt.find_ticket(convnet(), lambda model: None, rounds=1, rate=0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes_can_be_searched(dtype, tmp_path):
    model = convnet().to(dtype)

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X.to(dtype)), Y).backward()
            optimizer.step()

    search = lt.find_ticket(model, train, rounds=2, rate=0.3, rewind_to=1)
    search.ticket.save(tmp_path / "t")
    twin = convnet(seed=4).to(dtype)
    lt.load(tmp_path / "t").apply(twin)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    assert search.ticket.probe is not None


class Fixed(torch.nn.Module):
    """Takes one batch size only."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(36, 4)

    def forward(self, x):
        return self.fc(x.view(8, 36))


def test_a_model_that_cannot_be_probed_still_gives_tickets():
    with pytest.warns(UserWarning, match="no probe, so the ticket stays in torch"):
        search = lt.find_ticket(Fixed(), Loop(), rounds=1, rate=0.2)
    search.ticket.apply(Fixed())


class Buffered(Fixed):
    """Has a buffer with an infinity, and one that is not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.count += 1
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:no probe:UserWarning")  # it takes one batch size only
def test_infinite_and_unsaved_buffers(tmp_path):
    loop, counts = Loop(), []

    def train(model):
        counts.append(float(model.count))
        loop(model)

    search = lt.find_ticket(Buffered(), train, rounds=2, rate=0.2)
    search.ticket.save(tmp_path / "t")
    assert lt.load(tmp_path / "t").params["buffered.mask"][1] == -np.inf
    assert counts == [0, 0], "buffers that are not saved are rewound too"


def test_a_guessed_example_that_fails_leaves_the_structure_untraced():
    class Scalar(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(36, 4)
            self.calls = 0

        def forward(self, x, factor):
            self.calls += 1
            if self.calls > 12:
                raise RuntimeError("no more")
            return self.fc(x.flatten(1)) * factor

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(12):
            model(X[:8], torch.tensor(2.0)).square().mean().backward()
            optimizer.step()

    search = lt.find_ticket(Scalar(), train, rounds=1, rate=0.2)
    assert "no more" in search.ticket.structure.untraced


@pytest.mark.parametrize("result", [None, [1, 2], {"a": {"b": 1}}, "good"])
def test_evaluate_that_returns_something_odd(result):
    with pytest.raises(InvalidValueError, match="evaluate returned"):
        lt.find_ticket(convnet(), Loop(1), rounds=1, rate=0.2, evaluate=lambda m: result)


def test_a_diverged_run_still_has_a_ticket():
    search = lt.find_ticket(convnet(), Loop(1), rounds=1, rate=0.2, evaluate=lambda m: float("nan"))
    assert np.isnan(search.rounds[0].metrics["score"])
    assert search.ticket.provenance["metrics"] == {"score": "nan"}
    assert search.ticket.id.startswith("sha256:")


def test_numbers_of_numpy_and_schedules_by_name():
    loop = Loop()
    search = lt.find_ticket(convnet(), loop, schedule="to-sparsity", rounds=2, sparsity=0.5,
                            rewind_to=np.int64(2))  # fmt: skip
    assert search.ticket.masks.kept == 459
    with pytest.raises(InvalidValueError, match="schedule= is given, and also"):
        lt.find_ticket(convnet(), loop, schedule=lt.OneShot(0.5), rounds=3)
    with pytest.raises(InvalidValueError, match="'one-shot' does not take 'rounds'"):
        lt.find_ticket(convnet(), loop, schedule="one-shot", sparsity=0.5, rounds=3)
    for options in ({"criterion": 3}, {"scope": None}, {"rewind_to": None}, {"rewind_to": 2.0}):
        with pytest.raises(InvalidValueError, match="expected"):
            lt.find_ticket(convnet(), loop, **{"rounds": 1, "rate": 0.2, **options})


def test_functions_in_provenance_have_the_same_name_in_every_process():
    def halves(goal, masks, infos):
        return [lt.Group(tuple(masks), masks.kept // 5)]

    search = lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, scope=halves)
    assert "0x" not in search.ticket.provenance["scope"]
    assert "halves" in search.ticket.provenance["scope"]


def test_fine_tuning_after_a_search_keeps_the_optimizers_state():
    model = convnet()
    shared = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    lt.find_ticket(model, Loop(optimizer=shared), rounds=1, rate=0.2).hold.release()
    Loop(2, shared)(model)
    before = shared.state[model[4].bias]["momentum_buffer"].clone()
    shared.zero_grad()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    shared.step()
    assert torch.allclose(shared.state[model[4].bias]["momentum_buffer"], 0.9 * before)


def test_an_interrupt_in_training_leaves_a_usable_model():
    class Stop(KeyboardInterrupt):
        pass

    class Interrupted(Loop):
        def __call__(self, model):
            super().__call__(model)
            if len(self.starts) == 2:
                raise Stop

    model = convnet()
    with pytest.raises(Stop):
        lt.find_ticket(model, Interrupted(), rounds=3, rate=0.3)
    lt.held(model).check()
    lt.held(model).release()
    lt.find_ticket(model, Loop(), rounds=1, rate=0.3)


def test_a_reinit_control_never_draws_the_original_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 6)
    original = model.weight.detach().clone()
    lt.prune(model, 0.0)
    ticket = lt.Ticket.from_model(model)
    ticket.apply(model, weights="reinit", seed=0, existing="replace")
    assert not torch.equal(model.weight, original)


def test_every_training_starts_in_the_mode_of_the_first():
    modes = []

    class Watching(Loop):
        def __call__(self, model):
            modes.append([m.training for m in model.modules()])
            super().__call__(model)

    model = convnet()
    model[1].eval()  # a frozen norm stays frozen
    lt.find_ticket(model, Watching(), rounds=2, rate=0.2, evaluate=lambda m: float(not m.eval()))
    assert modes == [[True, True, False, True, True, True]] * 3


def test_round_zero_is_told_as_what_it_is():
    search = lt.find_ticket(convnet(), Loop(), rounds=1, rate=0.2, rewind_to=4)
    kinds = [round_.ticket.provenance["rewind"]["kind"] for round_ in search.rounds]
    assert kinds == ["initialization", "step"]


class Policy:
    snapshots, resume_step = (), 0

    def __init__(self, change=lambda params: params):
        self.change = change

    def rewind(self, context):
        return self.change(dict(context.trained))

    def describe(self):
        return {"kind": "mine"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: {"4.bias": p["4.bias"]}, InvalidValueError, r"Policy.*missing \['0.weight'"),
        (lambda p: {**p, "zzz": 1}, InvalidValueError, r"unknown \['zzz'\]"),
        (lambda p: {**p, "4.bias": np.ones(3)}, InvalidValueError, r"4.bias: \(3,\).*\(4,\)"),
        (lambda p: {**p, "4.bias": np.full(4, np.nan)}, NonFiniteError, "'4.bias'"),
    ],
)
def test_policies_that_return_nonsense_are_stopped(change, error, message):
    with pytest.raises(error, match=message):
        lt.find_ticket(convnet(), Loop(2), rounds=1, rate=0.2, rewind_to=Policy(change))


def test_policies_may_be_classes_and_of_another_precision():
    wide = Policy(lambda p: {n: a.astype(np.float64) if a.dtype.kind == "f" else a
                             for n, a in p.items()})  # fmt: skip
    for policy in (Policy, wide):
        ticket = lt.find_ticket(convnet(), Loop(2), rounds=1, rate=0.2, rewind_to=policy).ticket
        assert ticket.params["4.bias"].dtype == np.float32


@pytest.mark.parametrize(
    "groups",
    [
        [lt.Group(("4.weight",), 3), lt.Group(("4.weight",), 5)], [lt.Group(("zzz",), 3)],
        [lt.Group(("4.weight",), 3.0)], [lt.Group(("4.weight",), 10**6)],
    ],
)  # fmt: skip
def test_allocations_that_give_nonsense_are_stopped(groups):
    with pytest.raises(InvalidValueError, match="expected"):
        lt.prune(convnet(), 0.5, scope=lambda goal, masks, infos: groups)


def test_criteria_in_every_form():
    class Rule:
        name, needs, elementwise = "rule", frozenset(), False

        def score(self, param):
            return abs(param.weight)

    def bare(param):
        return abs(param.weight)

    masks = [lt.prune(convnet(), 0.5, criterion=c).masks for c in (Rule, Rule(), bare, "magnitude")]
    assert all(m == masks[0] for m in masks)
    text = lt.criterion("test-text", needs="gradient")(bare)
    assert text.needs == {"gradient"}


def test_an_error_in_round_zero_leaves_the_model_free():
    model = convnet()

    def train(model):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        lt.find_ticket(model, train, rounds=1, rate=0.2)
    assert lt.held(model) is None
    lt.find_ticket(model, Loop(2), rounds=1, rate=0.2)


def test_the_guides_random_mask_control_has_the_tickets_counts():
    ticket = lt.find_ticket(convnet(), Loop(2), rounds=2, rate={"*": 0.3, "@output": 0.1}).ticket
    shares = {name: 1 - kept / total for name, (kept, total) in ticket.masks.counts.items()}
    masks = lt.prune(convnet(), shares, criterion="random").masks
    assert masks.counts == ticket.masks.counts
    assert masks != ticket.masks
