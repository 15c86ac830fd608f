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
        with pytest.raises(lt.LtcoreError, match="no-such.*there are"):
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
