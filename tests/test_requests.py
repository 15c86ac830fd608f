"""What every call that prunes decides and refuses before it trains or changes anything."""

from fractions import Fraction

import numpy as np
import pytest

import ltcore as lt
from ltcore.allocation import Rate, Sparsity, by_global, by_layer
from ltcore.criteria import FunctionCriterion
from ltcore.errors import HoldError, InvalidValueError, LtcoreError, NonFiniteError
from ltcore.guards import Floor, KeepDense
from ltcore.masks import Masks
from ltcore.options import plain
from ltcore.parameters import ParamInfo
from ltcore.pruning import Pruning, check_goals
from ltcore.scoring import ArrayScores
from ltcore.select import select, thinned
from ltcore.shares import Erk, SmartRatio
from ltcore.testing import BatchNorm, Linear, NumpyModel, Relu, Sgd, mean_squared_error
from ltcore.weight_criteria import magnitude

X = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
BATCHES = [(X, np.zeros((6, 2), np.float32))]


def network(seed=0, hidden=10):
    return NumpyModel([Linear(7, hidden), Relu(), Linear(hidden, 2)], seed)


def weights(model):
    return {name: array.copy() for name, array in model.arrays().items()}


class Train:
    """Made-up updates; ``calls`` counts trainings, ``seen`` has the weights after each update."""

    def __init__(self, updates=3):
        self.updates, self.calls, self.seen = updates, 0, []

    def __call__(self, model, start_step=0):
        self.calls += 1
        optimizer, rng = Sgd(model, 0.1), np.random.default_rng(self.calls)
        for _ in range(self.updates):
            live = model.arrays(trained_only=True)
            optimizer.step({n: rng.standard_normal(a.shape, np.float32) for n, a in live.items()})
            self.seen.append(weights(model))


def one_shot(model, **options):
    lt.prune(model, **options)


def search(model, **options):
    next(lt.iter_rounds(model, Train(), **options))


def gradual(model, **options):
    lt.prune_gradually(model, end=4, **options)


def early(model, **options):
    lt.early_bird(model, every=1, **options)


def sparse(model, **options):
    lt.train_sparse(model, method="set", **options)


DOORS = [one_shot, search, gradual, early, sparse]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": {"typo": 0.5}}, "typo"),
        ({"sparsity": "0.9"}, "'0.9'; expected a fraction"),
        ({"sparsity": 1.0}, "1.0"),
        ({"sparsity": 0.5, "prunable": ["typo"]}, "typo"),
        ({"sparsity": 0.5, "scope": "typo"}, "typo"),
        ({"sparsity": 0.9, "scope": {"name": "floor", "fraction": 0.5}}, "floor"),
        ({"sparsity": 0.9, "scope": lambda goal, masks, infos: [lt.Group(("x",), 1)]}, "disjoint"),
    ],
)
def test_what_cannot_be_is_refused_while_the_model_is_as_it_came(door, options, match):
    model = network()
    before = weights(model)
    with pytest.raises(LtcoreError, match=match):
        door(model, **options)
    assert lt.held(model) is None
    assert not model.after_update
    assert all(np.array_equal(before[name], array) for name, array in weights(model).items())


@pytest.mark.parametrize("door", [one_shot, search, gradual, early])
def test_a_pattern_that_does_not_fit_or_reach_is_refused(door):
    with pytest.raises(InvalidValueError, match="fits no parameter"):
        door(network(hidden=9), pattern="2:4")
    with (
        pytest.warns(UserWarning, match="leaves parameters dense"),
        pytest.raises(InvalidValueError, match="at most"),
    ):
        door(network(hidden=8), sparsity={"*": 0.75}, pattern="2:4", scope="layer")


@pytest.mark.parametrize("door", DOORS)
def test_a_signal_that_nobody_has_is_refused_and_who_has_it_is_told(door):
    model = network()
    rule = lt.criterion("reads-rewind", needs={"rewind"})(lambda param: abs(param.rewind))
    if door is search:
        door(model, sparsity=0.5, criterion=rule)
        return
    if door is sparse:
        method = own_method(drop=rule)
        with pytest.raises(InvalidValueError, match=r"needs \['rewind'\].*known to find_ticket"):
            lt.train_sparse(model, 0.5, method=method)
    else:
        with pytest.raises(InvalidValueError, match=r"needs \['rewind'\].*known to find_ticket"):
            door(model, sparsity=0.5, criterion=rule)
    assert lt.held(model) is None


def test_movement_in_one_shot_names_those_who_know_the_initial_weights():
    with pytest.raises(InvalidValueError, match="'initial' is known to .*prune_gradually"):
        lt.prune(network(), 0.5, criterion="movement")


# The schedule, played over counts


def wide():
    return NumpyModel([Linear(7, 10), Relu(), Linear(10, 10), Relu(), Linear(10, 2)])


class Counting(Train):
    def __call__(self, model, start_step=0):
        raise AssertionError("trained before the request was known to be possible")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate": 0.2, "rounds": 10, "scope": "keep-dense"}, "kept dense"),
        ({"rate": {"typo": 0.2}, "rounds": 2}, "typo"),
        ({"sparsity": "0.9", "rounds": 2}, "expected a fraction"),
        ({"rate": 0.5, "rounds": 3, "scope": {"name": "floor", "fraction": 0.4}}, "floor"),
    ],
)
def test_a_search_that_ends_in_an_error_does_not_begin(options, match):
    with pytest.raises(InvalidValueError, match=match):
        lt.iter_rounds(wide(), Counting(), **options)


INFOS = tuple(
    ParamInfo(name, "dense", "weight", shape, name == "c", True)
    for name, shape in {"a": (20, 30), "b": (10, 20), "c": (4, 10)}.items()
)
EVERYTHING = Masks.ones({info.name: info.shape for info in INFOS})


@pytest.mark.parametrize("allocation", [by_layer, Erk(), SmartRatio(), Floor(Erk(), 2)])
@pytest.mark.parametrize("goal", [Rate(0.3), Rate({"*": 0.4, "@output": 0.1}), Sparsity(0.9)])
def test_played_counts_are_those_of_a_selection(allocation, goal):
    rng, played, selected = np.random.default_rng(0), EVERYTHING, EVERYTHING
    for _ in range(5):
        scores = ArrayScores({info.name: rng.random(info.shape) for info in INFOS})
        groups = allocation(goal, selected, INFOS)
        played, selected = thinned(played, groups), select(scores, selected, groups)
        assert played.counts == selected.counts


def test_parameters_that_compete_are_thinned_in_proportion():
    groups = by_global(Sparsity(0.5), EVERYTHING, INFOS)
    found = thinned(EVERYTHING, groups).counts
    assert found == {"a": (300, 600), "b": (100, 200), "c": (20, 40)}


@pytest.mark.parametrize(
    "allocation", [KeepDense(first=0), KeepDense(by_layer, first=0), Floor(by_global, 30)]
)
def test_a_schedule_plays_through_exactly_as_far_as_selection_comes(allocation):
    rng, masks, rounds = np.random.default_rng(0), EVERYTHING, 0
    try:
        while rounds < 30:
            groups = allocation(Rate(0.3), masks, INFOS)
            scores = ArrayScores({info.name: rng.random(info.shape) for info in INFOS})
            masks = select(scores, masks, groups)
            rounds += 1
    except LtcoreError:
        pass
    assert 0 < rounds < 30
    pruning = Pruning(magnitude, allocation, Rate(0.3), INFOS)
    check_goals([pruning] * rounds, EVERYTHING)
    with pytest.raises(InvalidValueError):
        check_goals([pruning] * (rounds + 1), EVERYTHING)


def test_goals_are_asked_for_once():
    asked = []

    def due(index):
        asked.append(index)
        return 0.1 * index

    lt.find_ticket(network(), Train(), schedule=due, rounds=3)
    assert asked[-3:] == [1, 2, 3]


# A search and the hold on its model


def test_an_error_in_the_first_evaluation_leaves_no_hold():
    model = network()
    with pytest.raises(InvalidValueError, match="evaluate returned"):
        lt.find_ticket(model, Train(), rate=0.2, rounds=1, evaluate=lambda model: "x")
    assert lt.held(model) is None
    lt.find_ticket(model, Train(), rate=0.2, rounds=1)


def test_a_hold_that_comes_before_the_first_round_is_not_replaced():
    model = network()
    rounds = lt.iter_rounds(model, Train(), rate=0.2, rounds=1)
    hold = lt.prune(model, 0.5)
    with pytest.raises(HoldError, match="held already"):
        next(rounds)
    assert lt.held(model) is hold
    assert hold.masks.sparsity == 0.5


def test_the_rewind_signal_is_the_weights_at_the_step_that_the_schedule_goes_back_to():
    seen, train = [], Train()

    def reads(param):
        seen.append((param.info.name, param.rewind.copy()))
        return np.abs(param.weight)

    rule = lt.criterion("reads-rewind", needs={"rewind"})(reads)
    rewind_to = {"name": "learning-rate", "step": 2}
    lt.find_ticket(network(), train, rate=0.2, rounds=1, criterion=rule, rewind_to=rewind_to)
    assert [name for name, _ in seen] == ["layers.0.weight", "layers.2.weight"]
    for name, array in seen:
        assert np.array_equal(array, train.seen[1][name]), name


# Masks that move belong to what moves them


@pytest.mark.parametrize(
    "change",
    [
        lambda model, ticket: lt.prune(model, 0.75),
        lambda model, ticket: lt.hold(model, existing="replace"),
        lambda model, ticket: lt.hold(model, existing="tighten"),
        lambda model, ticket: ticket.apply(model, existing="replace"),
        lambda model, ticket: lt.prune_gradually(model, 0.9, end=4),
        lambda model, ticket: lt.train_sparse(model, method="set"),
    ],
)
@pytest.mark.parametrize("door", [gradual, sparse])
def test_nobody_else_changes_masks_that_move(door, change):
    model = network()
    lt.prune(model, 0.25)
    ticket = lt.Ticket.from_model(model, example=X[:1])
    lt.held(model).release()
    door(model, sparsity=0.5, every=1)
    hold, before = lt.held(model), weights(model)
    masks = hold.masks
    with pytest.raises(HoldError, match="masks change already"):
        change(model, ticket)
    assert lt.held(model) is hold
    assert hold.masks == masks
    assert all(np.array_equal(before[name], array) for name, array in weights(model).items())
    Train()(model)


def test_what_stopped_moving_may_be_changed():
    model = network()
    with lt.prune(model, 0.25):
        with lt.train_sparse(model, method="set", every=1):
            Train()(model)
        assert lt.prune(model, 0.5).masks.sparsity == 0.5


# Where the model's graph is learned from training

torch = pytest.importorskip("torch")


class Backwards(torch.nn.Module):
    """Its output layer is the one that it lists first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = torch.nn.Linear(8, 4), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


INPUTS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def train_torch(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(INPUTS).square().mean().backward()
        optimizer.step()


def found_by_search(model, example, **options):
    return lt.find_ticket(model, train_torch, example=example, **options).ticket.masks


def found_gradually(model, example, **options):
    with lt.prune_gradually(model, begin=1, end=2, every=1, example=example, **options) as made:
        train_torch(model)
        return made.masks


def found_early(model, example, **options):
    with lt.early_bird(model, every=1, example=example, **options) as bird:
        train_torch(model)
        return bird.masks


@pytest.mark.parametrize("found", [found_by_search, found_gradually, found_early])
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": {"*": 0.5, "@output": 0.0}},
        {"sparsity": 0.5, "scope": "smart-ratio"},
        {"sparsity": 0.25, "scope": {"name": "keep-dense", "first": 0}},
    ],
)
def test_output_layers_are_those_that_training_shows(found, options):
    unknown = found(Backwards(), None, **options)
    given = found(Backwards(), INPUTS, **options)
    assert unknown == given
    kept, total = unknown.counts["head.weight"]
    if options.get("scope") == "smart-ratio":
        assert kept == 10  # its output density of 0.3
    else:
        assert kept == total


def test_a_channel_pattern_leaves_the_true_output_alone():
    with pytest.warns(UserWarning, match="leaves parameters dense"):
        given = found_by_search(Backwards(), INPUTS, sparsity=0.5, pattern="channel")
    assert given.counts == {"head.weight": (32, 32), "body.weight": (32, 64)}


# Gradual pruning that fails


def test_a_failed_gradual_pruning_leaves_an_earlier_hold_as_it_was():
    model = network()
    hold = lt.prune(model, 0.25, prunable=["layers.0.weight"])
    masks, story = hold.masks, dict(hold.story)
    with pytest.raises(NonFiniteError):
        lt.prune_gradually(model, 0.5, end=4, criterion=lambda param: param.weight * np.nan)
    assert lt.held(model) is hold
    assert hold.masks == masks
    assert hold.story == story
    Train()(model)
    hold.check()
    with lt.prune_gradually(model, 0.5, end=2, every=1) as pruning:
        Train()(model)
    assert pruning.finished


def test_a_pruning_that_failed_is_not_done():
    model, fails = network(), [True]

    def rule(param):
        return np.abs(param.weight) * (np.nan if fails else 1)

    pruning = lt.prune_gradually(model, 0.5, begin=2, end=3, every=5, criterion=rule)
    train = Train(2)
    with pytest.raises(NonFiniteError):
        train(model)
    assert not pruning.finished
    fails.clear()
    pruning.update()
    assert [step for step, _, _ in pruning.history] == [2]
    Train(1)(model)
    assert pruning.finished
    assert pruning.masks.sparsity == pytest.approx(0.5, abs=0.01)
    pruning.release()


# Early birds and patterns


def test_an_early_bird_takes_kernels_and_their_sparsity_where_a_pattern_is_given():
    model = NumpyModel([Linear(8, 8), BatchNorm(8), Relu(), Linear(8, 4)])
    with lt.early_bird(model, every=1, pattern="2:4") as bird:
        Train()(model)
    assert bird.masks.counts == {"layers.0.weight": (32, 64), "layers.3.weight": (16, 32)}
    with pytest.raises(InvalidValueError, match="allows a sparsity of 0.5 at most"):
        lt.early_bird(model, 0.75, every=1, pattern="2:4")
    with pytest.raises(InvalidValueError, match="sparsity is missing"):
        lt.early_bird(model, every=1)


# Sparse training


def own_method(share=lambda step, until: 0.5, **parts):
    class Own:
        name = "own"
        drop = grow = magnitude

    for part, value in parts.items():
        setattr(Own, part, value)
    Own.share = staticmethod(share)
    return Own()


class Arranged:
    name, needs, elementwise = "arranged", frozenset(), False

    def score(self, param):
        return np.abs(param.weight)

    def rearrange(self, before, chosen, rng):
        return chosen


def test_sparse_training_says_when_it_can_move_nothing():
    model = network()
    with lt.prune(model, 0.5, prunable=["layers.0.weight"]) as hold:
        with pytest.raises(InvalidValueError, match=r"layers\.2\.weight.*on \['layers\.0\.weight"):
            lt.train_sparse(model, method="set", prunable=["layers.2.weight"])
        with pytest.warns(UserWarning, match=r"layers\.2\.weight.* stay dense"):
            lt.train_sparse(model, method="set").stop()
        assert lt.held(model) is hold


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "rigl", "until": 0}, "until is 0"),
        ({"method": own_method(lambda step, until: 1.7)}, "share that method 'own' moves is 1.7"),
        ({"method": own_method(grow=FunctionCriterion("later", abs, passes=3))}, "several passes"),
        ({"method": own_method(drop=Arranged())}, "rearranges"),
    ],
)
def test_sparse_training_refuses_what_it_cannot_do(options, match):
    model = network()
    options = {"batches": BATCHES, "loss": mean_squared_error, **options}
    with pytest.raises(InvalidValueError, match=match):
        lt.train_sparse(model, 0.5, **options)
    assert lt.held(model) is None


# Stories


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Fraction(9, 10), 0.9), (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True),
        ({"a": Fraction(1, 2)}, {"a": 0.5}),
    ],
)  # fmt: skip
def test_numbers_are_told_as_json_has_them(given, told):
    found = plain(given)
    assert found == told
    inner = found["a"] if isinstance(found, dict) else found
    assert type(inner) in (bool, int, float)


def test_a_hold_that_changes_nothing_keeps_what_is_told():
    model = network()
    hold = lt.prune(model, Fraction(1, 2))
    story = dict(hold.story)
    assert story["goal"] == {"sparsity": 0.5}
    lt.hold(model, existing="tighten")
    assert hold.story == story


def test_sparse_training_tells_how_its_first_masks_came_about():
    model = network()
    with lt.train_sparse(model, 0.5, method="set", scope="layer") as training:
        told = training.ticket().provenance["sparse_training"]["start"]
    assert told["scope"] == "layer"
    assert told["goal"] == {"sparsity": 0.5}
