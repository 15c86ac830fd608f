"""What ltcore does while somebody trains, on the numpy reference: formulas and brute force."""

import gc
import json
import weakref
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ltcore as lt
from ltcore.errors import (
    HoldError,
    InvalidValueError,
    MaskError,
    NonFiniteError,
    SelectorError,
    UnknownNameError,
)
from ltcore.masks import Masks
from ltcore.pacing import Beats
from ltcore.testing import BatchNorm, Linear, NumpyModel, Relu, Sgd, mean_squared_error
from ltcore.weight_criteria import magnitude

EXAMPLE = np.zeros((1, 10), np.float32)


def network(seed=0):
    return NumpyModel([Linear(10, 10), Relu(), Linear(10, 2)], seed)


def weights(model):
    return {name: array.copy() for name, array in model.arrays().items()}


class Loop:
    """Updates with made-up gradients; ``seen`` is the model after each."""

    def __init__(self, model, seed=0, momentum=0.9):
        self.model, self.rng, self.seen = model, np.random.default_rng(seed), []
        self.optimizer = Sgd(model, 0.1, momentum=momentum)

    def __call__(self, updates):
        for _ in range(updates):
            live = self.model.arrays(trained_only=True)
            gradients = {n: self.rng.standard_normal(a.shape) for n, a in live.items()}
            self.optimizer.step({n: g.astype(np.float32) for n, g in gradients.items()})
            self.seen.append(weights(self.model))


def brute_force_magnitude(params, masks, kept):
    """Return masks with the ``kept`` largest of all weights under ``masks``; no ties here."""
    every = np.concatenate([np.abs(params[name][masks[name]]) for name in masks])
    threshold = np.sort(every)[len(every) - kept]
    return {name: masks[name] & (np.abs(params[name]) >= threshold) for name in masks}


# Beats


@given(
    every=st.integers(1, 9), begin=st.integers(0, 9), length=st.none() | st.integers(0, 30),
    jumps=st.lists(st.integers(1, 7), max_size=20),
)  # fmt: skip
@settings(max_examples=200)
def test_beats_are_acted_on_once_and_in_order(every, begin, length, jumps):
    end = None if length is None else begin + length
    beats, done, steps, acted = Beats(every, begin, end), -1, 0, []
    for jump in [0, *jumps]:
        before, steps = steps - (jump == 0), steps + jump
        passed = [
            step for step in range(max(before + 1, begin), steps + 1)
            if (end is None or step <= end) and ((step - begin) % every == 0 or step == end)
        ]  # fmt: skip
        due = beats.last(done, steps)
        assert due == (passed[-1] if passed else None)
        if due is not None:
            acted.append(due)
            done = due
    assert acted == sorted(set(acted))


# Gradual pruning


def test_the_ramp_is_the_formula_of_zhu_and_gupta():
    model = network()
    with lt.prune_gradually(model, 0.8, begin=4, end=20, every=4, initial_sparsity=0.1) as pruning:
        Loop(model)(22)
    formula = [0.8 + (0.1 - 0.8) * (1 - (t - 4) / (4 * 4)) ** 3 for t in (4, 8, 12, 16, 20)]
    assert pruning.history == [
        (t, 120 - int(s * 120 + 0.5), 120) for t, s in zip((4, 8, 12, 16, 20), formula, strict=True)
    ]
    assert pruning.finished
    assert pruning.hold.released


def test_linear_and_own_ramps_and_selectors():
    model = network()
    with lt.prune_gradually(model, {"*": 0.5, "@output": 0.25}, end=4, every=2, ramp="linear") as p:
        Loop(model)(2)
        assert p.masks.counts == {"layers.0.weight": (75, 100), "layers.2.weight": (17, 20)}
        Loop(model)(2)
        assert p.masks.counts == {"layers.0.weight": (50, 100), "layers.2.weight": (15, 20)}
    model = network()
    with lt.prune_gradually(model, 0.5, end=4, every=1, ramp=lambda time: time**2) as p:
        Loop(model)(4)
    assert [kept for _, kept, _ in p.history] == [
        120 - int(60 * (t / 4) ** 2 + 0.5) for t in range(5)
    ]


def test_the_last_pruning_is_at_the_end_whatever_the_interval():
    model = network()
    with lt.prune_gradually(model, 0.5, end=7, every=3) as pruning:
        Loop(model)(9)
    assert [step for step, _, _ in pruning.history] == [0, 3, 6, 7]
    assert pruning.masks.kept == 60


def test_masks_nest_zeros_hold_at_every_step_and_scores_are_of_that_step():
    model = network()
    loop, masks = Loop(model), []
    with lt.prune_gradually(model, 0.9, end=12, every=3) as pruning:
        for _ in range(15):
            loop(1)
            masks.append(pruning.masks)
    for earlier, later in pairwise(masks):
        assert later.nested_in(earlier)
    for held, params in zip(masks, loop.seen, strict=True):
        for name, mask in held.items():
            assert not params[name][~mask].any()
            assert params[name][mask].all()
    # What the next pruning keeps are the largest weights right after the update.
    before = masks[4]
    params = {name: loop.seen[5][name] for name in before}
    kept = brute_force_magnitude(params, before, masks[5].kept)
    assert masks[5] == kept


def test_a_ticket_tells_the_ramp():
    model = network()
    options = {"begin": 1, "end": 5, "every": 2, "ramp": "linear", "initial_sparsity": 0.1}
    with lt.prune_gradually(model, 0.5, scope="layer", seed=4, **options) as pruning:
        Loop(model)(3)
        told = lt.Ticket.from_model(model).provenance
        Loop(model)(2)
    assert told["gradual"] == {**options, "sparsity": 0.5}
    assert told["goal"] == {"sparsity": 0.3}
    assert (told["criterion"], told["scope"], told["seed"]) == ("magnitude", "layer", 4)
    assert pruning.finished


@pytest.mark.parametrize("pattern", ["2:4", {"name": "channel"}])
def test_patterns_grow_too(pattern):
    model = NumpyModel([Linear(8, 8), Relu(), Linear(8, 4)])
    masks = []
    options = {"pattern": pattern, "prunable": ["layers.0.weight"]}
    with lt.prune_gradually(model, 0.5, end=4, every=1, **options) as pruning:
        for _ in range(4):
            Loop(model)(1)
            masks.append(pruning.masks["layers.0.weight"])
    assert [m.sum() for m in masks] == sorted((m.sum() for m in masks), reverse=True)
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(masks))
    assert masks[-1].sum() == 32
    if pattern == "2:4":
        assert (masks[-1].reshape(8, 2, 4).sum(-1) == 2).all()
    else:
        assert all((m.all(1) | ~m.any(1)).all() for m in masks), "whole rows"


def test_initial_sparsity_at_step_zero_is_pruned_at_once():
    model = network()
    with lt.prune_gradually(model, 0.5, initial_sparsity=0.25, end=3, every=1) as pruning:
        assert pruning.masks.kept == 90
        Loop(model)(3)
    assert pruning.masks.kept == 60


def test_a_held_model_is_pruned_further():
    model = network()
    first = lt.prune(model, 0.4)
    masks = first.masks
    pruning = lt.prune_gradually(model, 0.5, end=2, every=1)
    assert pruning.hold is first
    assert pruning.masks == masks
    Loop(model)(2)
    assert pruning.masks.nested_in(masks)
    assert [kept for _, kept, _ in pruning.history] == [72, 67, 60]
    pruning.release()
    assert lt.held(model) is None


def test_ending_early_is_a_warning_that_says_how_far_it_got():
    model = network()
    with (
        pytest.warns(UserWarning, match=r"saw 3 updates .* 0\.8 at 10; it is at 0\.525"),
        lt.prune_gradually(model, 0.8, end=10, every=1),
    ):
        Loop(model)(3)
    pruning = lt.prune_gradually(model, 0.8, end=10, every=1)
    with pytest.warns(UserWarning, match="saw 0 updates"):
        pruning.release()
    pruning.release()


def test_an_error_in_training_is_not_hidden_by_a_warning():
    model = network()
    with pytest.raises(ZeroDivisionError), lt.prune_gradually(model, 0.8, end=10, every=1):
        Loop(model)(1 // 0)
    assert lt.held(model) is None


def test_updates_that_ltcore_does_not_see_are_told():
    model = network()
    pruning = lt.prune_gradually(model, 0.5, end=4, every=2)
    for step in range(1, 5):
        for array in model.arrays().values():
            array += 0.01
        pruning.update(step)
    assert [step for step, _, _ in pruning.history] == [0, 2, 4]
    assert pruning.steps == 4
    pruning.release()
    with pytest.raises(InvalidValueError, match="steps is -1"):
        pruning.update(-1)


def test_a_hold_that_is_released_by_hand_ends_it():
    model = network()
    pruning = lt.prune_gradually(model, 0.5, end=4, every=1)
    Loop(model)(1)
    lt.held(model).release()
    Loop(model)(3)
    assert len(pruning.history) == 2
    assert pruning.released
    assert all(array.all() for array in model.arrays(trained_only=True).values())


def test_it_lasts_without_its_handle_and_keeps_no_model_alive():
    model = network()
    lt.prune_gradually(model, 0.5, end=4, every=1)
    gc.collect()
    Loop(model)(4)
    assert lt.held(model).masks.kept == 60
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_one_model_is_changed_by_one_thing():
    model = network()
    pruning = lt.prune_gradually(model, 0.5, end=1, every=1)
    for start in (
        lambda: lt.prune_gradually(model, 0.5, end=4),
        lambda: lt.train_sparse(model, method="set"),
    ):
        with pytest.raises(HoldError, match="change already: GradualPruning"):
            start()
    Loop(model)(1)
    pruning.release()
    with lt.train_sparse(model, 0.5, method="set"):
        pass


def test_criteria_that_need_initial_weights_get_those_of_the_beginning():
    @lt.criterion("gradual-movement", needs={"initial"})
    def movement(param):
        return np.abs(param.weight - param.initial)

    model = network()
    start, ranked = weights(model), []
    with lt.prune_gradually(model, 0.5, end=2, begin=1, every=1, criterion=movement) as pruning:
        everything = pruning.masks
        model.after_update.insert(1, lambda: ranked.append(weights(model)))
        Loop(model)(2)
    moved = {name: ranked[1][name] - start[name] for name in everything}
    assert pruning.masks == brute_force_magnitude(moved, everything, 60)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"end": 0}, "end is 0; expected .* 1 or more"),
        ({"end": 5, "begin": 5}, "end is 5"),
        ({"end": 5, "begin": -1}, "begin is -1"),
        ({"end": 5, "every": 0}, "every is 0"),
        ({"end": 5, "every": 2.0}, "every is 2.0"),
        ({"end": 5, "initial_sparsity": 0.9}, "initial_sparsity is 0.9 and sparsity is 0.5"),
        ({"end": 5, "ramp": "square"}, "ramp is 'square'.*cubic.*linear"),
        ({"end": 5, "every": 1, "ramp": lambda time: 2 * time}, "ramp gave 1.2 at step 3"),
        ({"end": 5, "sparsity": None}, "sparsity is missing"),
        ({"end": 5, "sparsity": 1.0}, "sparsity is 1.0"),
        ({"end": 5, "begin": 2, "sparsity": {"no*": 0.5}}, r"no\*"),
        ({"end": 5, "batches": iter([])}, "iterator"),
        ({"end": 5, "criterion": "magnitude", "prunable": ["nothing"]}, "nothing"),
    ],
)
def test_bad_options_leave_the_model_alone(options, match):
    model = network()
    with pytest.raises(InvalidValueError, match=match):
        lt.prune_gradually(model, **{"sparsity": 0.5, **options})
    assert lt.held(model) is None
    assert not model.after_update


# Early birds


def scripted(model, values):
    """Set the first kernel to ``values`` and make an update that changes nothing."""
    model.arrays()["layers.0.weight"][...] = values
    optimizer = Sgd(model, 0.0)
    optimizer.step({n: np.zeros_like(a) for n, a in model.arrays(trained_only=True).items()})


def test_distances_and_the_draw_are_those_of_brute_force():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((10, 10)).astype(np.float32)
    noises = [2.0, 1.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
    scripts = [base + n * rng.standard_normal((10, 10)).astype(np.float32) for n in noises]
    model, masks = network(), []
    with lt.early_bird(model, 0.5, every=1, prunable="layers.0.weight", window=4) as bird:
        for step, values in enumerate(scripts, 1):
            scripted(model, values)
            order = np.argsort(np.abs(values).reshape(-1))
            mask = np.ones(100, bool)
            mask[order[:50]] = False
            masks.append(mask)
            expected = tuple(float(np.mean(mask != m)) for m in masks[:-1][-3:])
            assert bird.distances[step] == pytest.approx(expected)
            if len(expected) == 3 and max(expected) <= 0.1:
                assert bird.drawn
                break
            assert not bird.drawn
    assert bird.drawn_at == step == len(bird.distances)
    assert 5 < step < len(scripts), "the script settles in its second half"
    assert np.array_equal(bird.masks["layers.0.weight"].reshape(-1), masks[-1])
    assert np.array_equal(bird.ticket().params["layers.0.weight"], scripts[step - 1])
    told = bird.ticket().provenance
    assert told["early_bird"]["step"] == step
    assert told["early_bird"]["distances"] == list(bird.distances[step])
    assert told["rewind"]["kind"] == "trained"


def test_the_model_is_only_looked_at():
    plain_, watched = network(), network()
    Loop(plain_)(8)
    with lt.early_bird(watched, 0.5, every=2, window=2) as bird:
        Loop(watched)(8)
        assert lt.held(watched) is None
    assert all(np.array_equal(a, weights(watched)[n]) for n, a in weights(plain_).items())
    assert len(bird.distances) in (2, 3, 4)
    assert not watched.after_update


def test_after_the_draw_nothing_is_measured_and_the_ticket_stays():
    model = network()
    loop = Loop(model)
    with lt.early_bird(model, 0.5, every=1, window=2, threshold=1.0, rewind_to=0) as bird:
        start = weights(model)
        loop(2)
        assert bird.drawn_at == 2
        ticket = bird.ticket()
        loop(5)
        assert bird.drawn_at == 2
        assert bird.ticket().masks == ticket.masks
    assert all(np.array_equal(a, start[name]) for name, a in ticket.params.items())
    twin = network()
    trained = lt.early_bird(twin, 0.5, every=1, window=2, threshold=1.0)
    Loop(twin)(7)
    drawn = trained.ticket().params
    assert all(np.array_equal(a, loop.seen[1][name]) for name, a in drawn.items())


def test_a_rewind_step_before_the_draw():
    model = network()
    loop = Loop(model)
    with lt.early_bird(model, 0.5, every=3, window=2, threshold=1.0, rewind_to=2) as bird:
        loop(6)
    params = bird.ticket().params
    assert all(np.array_equal(a, loop.seen[1][name]) for name, a in params.items())
    with lt.early_bird(model, 0.5, every=1, window=2, threshold=1.0, rewind_to=5) as bird:
        loop(6)
    with pytest.raises(InvalidValueError, match="rewind_to is step 5, but .* drawn at 2"):
        _ = bird.ticket()


def test_scales_of_norms_are_channels_and_take_their_shifts_along():
    model = NumpyModel([Linear(4, 6), BatchNorm(6), Relu(), Linear(6, 2)])
    model.arrays()["layers.1.weight"][...] = [0.1, -2, 0.3, 4, -0.2, 6]
    model.arrays()["layers.1.bias"][...] = 1
    bird = lt.early_bird(model, 0.5, every=1, window=2)
    scripted_nothing(model, 2)
    kept = [False, True, False, True, False, True]
    assert bird.masks == {"layers.1.weight": np.array(kept)}
    assert bird.ticket().masks == {n: np.array(kept) for n in ("layers.1.weight", "layers.1.bias")}
    bird.release()
    with bird.ticket().apply(model):
        x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        hidden = model.layers[1](model.layers[0](x))
        assert np.array_equal(hidden.any(axis=0), kept)


def scripted_nothing(model, updates):
    optimizer = Sgd(model, 0.0)
    for _ in range(updates):
        optimizer.step({n: np.zeros_like(a) for n, a in model.arrays(trained_only=True).items()})


def test_no_draw_is_an_error_that_says_how_far_it_got():
    model = network()
    with lt.early_bird(model, 0.5, every=1, threshold=0.0) as bird:
        with pytest.raises(InvalidValueError, match="0 updates were seen .* after 1"):
            _ = bird.masks
        Loop(model)(6)
    with pytest.raises(InvalidValueError, match=r"in 6 updates: the largest distance is \[0\."):
        _ = bird.ticket()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 1, "window": 1}, "window is 1"),
        ({"every": 1, "threshold": 2}, "threshold is 2"),
        ({"every": 1, "sparsity": 1.5}, "sparsity is 1.5"),
        ({"every": 1, "sparsity": {"no*": 0.5}}, r"no\*"),
        ({"every": 1, "prunable": []}, "prunable is empty"),
    ],
)
def test_bad_birds_are_refused(options, match):
    with pytest.raises(InvalidValueError, match=match):
        lt.early_bird(network(), **{"sparsity": 0.5, **options})


# Sparse training


def cycle(model, method, updates=12, **options):
    """Train with masks that move.

    Returns the handle, masks before and after each update, weights after each update before a
    move, and weights after it.
    """
    loop, masks, ranked = Loop(model), [], []
    chosen = {"method": method, "scope": "layer", "example": EXAMPLE, **options}
    with lt.train_sparse(model, 0.7, **chosen) as training:
        # After the hold, before the watch.
        model.after_update.insert(1, lambda: ranked.append(weights(model)))
        masks.append(training.masks)
        for _ in range(updates):
            loop(1)
            masks.append(training.masks)
    return training, masks, ranked, loop.seen


def test_counts_stay_exact_zeros_hold_and_masks_do_not_nest():
    training, masks, _, seen = cycle(network(), lt.SET(0.5), every=3)
    assert [move.step for move in training.history] == [3, 6, 9, 12]
    assert masks[0].counts == {"layers.0.weight": (30, 100), "layers.2.weight": (6, 20)}
    for held, params in zip(masks[1:], seen, strict=True):
        assert held.counts == masks[0].counts
        assert all(not params[name][~mask].any() for name, mask in held.items())
    assert not masks[-1].nested_in(masks[0])
    assert not masks[0].nested_in(masks[-1])
    for move in training.history:
        before, after = masks[move.step - 1], masks[move.step]
        assert move.grown == {n: np.count_nonzero(after[n] & ~before[n]) for n in after}
        assert move.digest == after.digest


def dropped(params, masks, share):
    """Return masks without the smallest of each parameter, and how many went; no ties here."""
    kept, counts = {}, {}
    for name, mask in masks.items():
        counts[name] = int(share * np.count_nonzero(mask) + 0.5)
        order = [i for i in np.argsort(np.abs(params[name]), axis=None) if mask.flat[i]]
        kept[name] = mask.copy()
        kept[name].flat[order[: counts[name]]] = False
    return kept, counts


def test_set_drops_the_smallest_and_grows_at_random():
    _, masks, ranked, seen = cycle(network(), lt.SET(0.3), every=4, updates=4)
    stay, counts = dropped(ranked[3], masks[3], 0.3)
    assert counts == {"layers.0.weight": 9, "layers.2.weight": 2}
    for name, mask in masks[4].items():
        assert not (stay[name] & ~mask).any(), "only the smallest go"
        assert np.count_nonzero(mask & ~stay[name]) == counts[name]
        assert not seen[3][name][mask & ~masks[3][name]].any(), "grown weights start at zero"
        back = mask & masks[3][name]
        assert np.array_equal(seen[3][name][back], ranked[3][name][back]), "others keep theirs"
    again = cycle(network(), lt.SET(0.3), every=4, updates=4)[1]
    other = cycle(network(), lt.SET(0.3), every=4, updates=4, seed=1)[1]
    assert again == masks
    assert other[0] != masks[0]


def test_layers_share_as_erk_does():
    training = cycle(network(), "set", updates=3, every=1, scope="erk")[0]
    # 36 weights in proportion to 10 + 10 and 2 + 10: 22.5 and 13.5.
    assert sorted(kept for kept, _ in training.masks.counts.values()) in ([13, 23], [14, 22])
    with lt.train_sparse(network(), 0.7, method="set", example=EXAMPLE) as default:
        assert default.masks.counts == training.masks.counts


def test_set_grows_everywhere_alike():
    counts = np.zeros(100)
    for seed in range(60):
        _, masks, ranked, _ = cycle(network(), lt.SET(0.5), every=1, updates=1, seed=seed)
        stay = dropped(ranked[0], masks[0], 0.5)[0]["layers.0.weight"]
        counts += (masks[1]["layers.0.weight"] & ~stay).reshape(-1)
    # Binomial: 15 of 85 grow, 60 times.
    assert counts.mean() == 9
    assert counts.std() < 2 * (60 * 15 / 85 * 70 / 85) ** 0.5
    assert counts.min() > 0


X = np.random.default_rng(5).standard_normal((6, 10)).astype(np.float32)
Y = np.random.default_rng(6).standard_normal((6, 2)).astype(np.float32)
DATA = {"batches": [(X, Y), (2 * X, Y)], "loss": mean_squared_error}


def slopes(params):
    """Return gradients of the mean loss by differences, weight by weight."""
    model = network()
    live = model.arrays()
    for name, array in params.items():
        live[name][...] = array

    def loss():
        return np.mean([mean_squared_error(model(x), y) for x, y in DATA["batches"]])

    for layer in model.layers:
        for role in layer.trained:
            setattr(layer, role, getattr(layer, role).astype(np.float64))
    found = {}
    for name, array in model.arrays(trained_only=True).items():
        found[name] = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            here, values = array[index], []
            for shift in (1e-5, -1e-5):
                array[index] = here + shift
                values.append(loss())
            array[index] = here
            found[name][index] = (values[0] - values[1]) / 2e-5
    return found


def test_rigl_grows_the_largest_gradients():
    model = network()
    training, masks, ranked, seen = cycle(model, "rigl", updates=6, every=2, until=8, **DATA)
    moved = 0
    for move, step in zip(training.history, (2, 4, 6), strict=True):
        share = 0.3 / 2 * (1 + np.cos(np.pi * step / 8))
        assert move.share == pytest.approx(share)
        stay, counts = dropped(ranked[step - 1], masks[step - 1], share)
        gradients = slopes(ranked[step - 1])
        for name, mask in stay.items():
            order = [i for i in np.argsort(-np.abs(gradients[name]), axis=None) if not mask.flat[i]]
            mask.flat[order[: counts[name]]] = True
            assert np.array_equal(masks[step][name], mask), (step, name)
            grown = mask & ~masks[step - 1][name]
            assert not seen[step - 1][name][grown].any()
            moved += np.count_nonzero(grown)
    assert moved


def test_the_last_move_comes_before_until():
    training, masks, _, _ = cycle(network(), lt.SET(0.3), every=3, until=9, updates=12)
    assert [move.step for move in training.history] == [3, 6]
    assert masks[6] == masks[12]


def test_momentum_of_grown_weights_starts_at_zero():
    model = network()
    loop = Loop(model)
    loop(3)
    with lt.train_sparse(model, 0.7, method=lt.SET(0.9), every=1) as training:
        for _ in range(5):
            before = training.masks
            loop(1)
            for name, mask in training.masks.items():
                grown = mask & ~before[name]
                assert grown.any()
                assert not loop.optimizer.velocity[name][grown].any()
                assert not loop.seen[-1][name][grown].any()


def test_from_the_masks_of_a_hold():
    model = network()
    hold = lt.prune(model, 0.7)
    masks = hold.masks
    with lt.train_sparse(model, method="set", every=2) as training:
        assert training.hold is hold
        assert training.masks == masks
        Loop(model)(2)
        assert training.masks != masks
        assert training.masks.counts == masks.counts
    assert hold.released


def test_a_ticket_says_that_masks_moved():
    training, _, _, seen = cycle(network(), lt.SET(0.3), every=2, updates=5)
    ticket = training.ticket()
    assert ticket.provenance["sparse_training"] == {
        "method": {"name": "set", "fraction": 0.3}, "every": 2, "until": None, "moves": 2,
        "nested": False, "start": {
            "criterion": "random", "scope": "layer", "pattern": "unstructured",
            "goal": {"sparsity": 0.7},
        },
    }  # fmt: skip
    assert ticket.provenance["rewind"] == {"kind": "present", "step": 5}
    assert ticket.masks == training.masks
    assert all(np.array_equal(a, seen[-1][name]) for name, a in ticket.params.items())
    assert {"criterion", "round", "goal", "parent"}.isdisjoint(ticket.provenance)
    model = network()
    lt.prune(model, 0.5, scope="layer")
    with lt.train_sparse(model, method="set", every=1) as training:
        for moves in (0, 1):
            told = lt.Ticket.from_model(model).provenance["sparse_training"]
            assert told["moves"] == moves
            assert told["start"]["criterion"] == "magnitude"
            Loop(model)(1)


def test_a_method_of_ones_own():
    """Grow where weights are smallest by position: a criterion decides."""

    class Shift:
        name = "shift"
        drop = lt.SET().drop

        class Grow:
            name, needs, elementwise = "first", frozenset(), False

            def score(self, param):
                return -np.arange(param.weight.size, dtype=float).reshape(param.weight.shape)

        grow = Grow()

        def share(self, step, until):
            return 0.5

    _, masks, ranked, _ = cycle(network(), Shift(), every=1, updates=1)
    stay, counts = dropped(ranked[0], masks[0], 0.5)
    for name, mask in stay.items():
        free = np.flatnonzero(~mask)[: counts[name]]
        mask.flat[free] = True
        assert np.array_equal(masks[1][name], mask)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "rigl"}, InvalidValueError, "until is missing"),
        ({"method": "rigl", "until": 500}, InvalidValueError, "batches, loss"),
        ({"method": "set", "until": 100}, InvalidValueError, "until is 100; .* 101 or more"),
        ({"method": "set", "every": 0}, InvalidValueError, "every is 0"),
        (
            {"method": "sett"},
            UnknownNameError,
            r"'sett'; did you mean 'set'\? There are \['rigl', 'set'\]",
        ),
        ({"method": "rgil"}, UnknownNameError, r"did you mean 'rigl'\?"),
        ({"method": {"fraction": 0.1}}, InvalidValueError, "has no 'name'"),
        ({"method": {"name": "set", "share": 0.1}}, InvalidValueError, "fraction: float = 0.3"),
        ({"method": {"name": "set", "fraction": 1.5}}, InvalidValueError, "fraction is 1.5"),
        ({"method": 3}, InvalidValueError, "method is 3"),
        ({"method": "set", "sparsity": None}, HoldError, "sparsity is missing"),
        ({"method": "set", "sparsity": 1.0}, InvalidValueError, "sparsity is 1.0"),
        ({"method": "set", "prunable": "no*"}, SelectorError, "no"),
    ],
)
def test_bad_sparse_training_is_refused(options, error, match):
    model = network()
    with pytest.raises(error, match=match):
        lt.train_sparse(model, **{"sparsity": 0.5, **options})
    assert lt.held(model) is None
    assert not model.after_update
    for made in (lt.SET, lt.RigL):
        with pytest.raises(InvalidValueError, match="fraction is 1.0"):
            made(1.0)


def test_a_method_may_be_named_with_its_options():
    named = {"name": "set", "fraction": 0.1}
    with lt.train_sparse(network(), 0.5, method=named) as run:
        assert run.method == lt.SET(0.1)
        assert run.hold.story["sparse_training"]["method"] == named
    partial = SimpleNamespace(name="mine", drop=magnitude, grow=magnitude)
    with pytest.raises(InvalidValueError, match="; it has no 'share'$"):
        lt.train_sparse(network(), 0.5, method=partial)


def test_a_held_model_and_a_sparsity_contradict():
    model = network()
    lt.prune(model, 0.5)
    with pytest.raises(HoldError, match="leave out sparsity"):
        lt.train_sparse(model, 0.5, method="set")


# Supermasks


def test_supermask_gradient_is_the_formula():
    """Two steps by hand: straight through the draw, with momentum."""
    for options in ({}, {"dynamic_scale": True, "signed_constant": True}):
        model = network()
        found = lt.find_supermask(
            model, DATA["batches"][:1], mean_squared_error, steps=2, lr=3.0, momentum=0.5, seed=1,
            prunable=["layers.0.weight"], **options,
        )  # fmt: skip
        weight = network().arrays()["layers.0.weight"]
        if options:
            weight = np.std(weight.astype(float)).astype(np.float32) * np.sign(weight)
        scores, velocity = np.zeros((10, 10)), np.zeros((10, 10))
        rng = np.random.Generator(np.random.Philox(key=[1, 0]))
        for _ in range(2):
            p = 1 / (1 + np.exp(-scores))
            mask = rng.random((10, 10)) < p
            scale = 100 / mask.sum() if options else 1.0
            params = {**network().arrays(), "layers.0.weight": mask * weight * scale}
            gradient = batch_slopes(params)["layers.0.weight"]
            velocity = 0.5 * velocity + gradient * weight * scale * p * (1 - p)
            scores = scores - 3.0 * velocity
        name = "layers.0.weight"
        np.testing.assert_allclose(found.scores[name], scores, rtol=1e-3, atol=1e-6)
        assert np.array_equal(found.weights[name], weight)
        np.testing.assert_allclose(found.probabilities[name], 1 / (1 + np.exp(-scores)), rtol=1e-3)
        assert all(np.array_equal(a, network().arrays()[n]) for n, a in model.arrays().items())


def batch_slopes(params):
    DATA["batches"], both = DATA["batches"][:1], DATA["batches"]
    try:
        return slopes(params)
    finally:
        DATA["batches"] = both


def test_supermask_masks_threshold_and_sample():
    found = lt.find_supermask(network(), [(X, Y)], mean_squared_error, steps=5, lr=20.0)
    masks = found.masks()
    assert repr(found) == (
        f"Supermask(kept={masks.kept}, total={masks.total}, parameters={len(masks)})"
    )
    for name, p in found.probabilities.items():
        assert np.array_equal(found.masks()[name], p > 0.5)
        assert np.array_equal(found.masks(0.6)[name], p > 0.6)
    assert found.sample(1) == found.sample(1) != found.sample(2)
    shares = np.mean([found.sample(i)["layers.0.weight"] for i in range(400)], axis=0)
    assert np.abs(shares - found.probabilities["layers.0.weight"]).max() < 0.12


def test_supermask_applied():
    model = network()
    found = lt.find_supermask(model, [(X, Y)], mean_squared_error, steps=3, dynamic_scale=True)
    masks = found.sample()
    with found.apply(model, masks) as hold:
        told = lt.Ticket.from_model(model).provenance["supermask"]
        assert (told["steps"], told["dynamic_scale"], told["lr"]) == (3, True, 100.0)
        assert hold.masks == masks
        for name, mask in masks.items():
            scale = mask.size / np.count_nonzero(mask)
            expected = np.where(mask, scale * network().arrays()[name], 0)
            np.testing.assert_allclose(model.arrays()[name], expected, rtol=1e-6)
        with pytest.raises(HoldError, match="held already"):
            found.apply(model)
        with pytest.raises(HoldError, match="held already"):
            lt.find_supermask(model, [(X, Y)], mean_squared_error, steps=3)
    with pytest.raises(MaskError, match="missing.*layers.2.weight"):
        found.apply(model, Masks({"layers.0.weight": np.ones((3, 3), bool)}))


def test_a_failing_loss_gives_the_model_its_weights_back():
    model = network()

    def broken(outputs, targets):
        raise ZeroDivisionError

    with pytest.raises(InvalidValueError, match="the loss failed.*ZeroDivisionError"):
        lt.find_supermask(model, [(X, Y)], broken, steps=3)
    assert all(np.array_equal(a, network().arrays()[n]) for n, a in model.arrays().items())


def test_integers_of_numpy_are_numbers_of_updates_and_fit_a_ticket():
    five, ten = np.int64(5), np.uint8(10)
    run = lt.train_sparse(network(), 0.5, method="set", every=five, until=ten)
    assert json.loads(json.dumps(run.hold.story)) == run.hold.story
    beats = lt.prune_gradually(network(), 0.5, begin=np.int64(0), end=ten, every=five).beats
    assert beats == Beats(5, 0, 10)
    assert {type(number) for number in (beats.every, beats.begin, beats.end)} == {int}
    for options in ({"until": np.float64(10)}, {"every": True}):
        with pytest.raises(InvalidValueError, match="expected a number of optimizer updates"):
            lt.train_sparse(network(), 0.5, method="set", **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_supermask_stops_at_the_step_whose_gradients_are_no_numbers(value):
    model, bad = network(), X.copy()
    bad[0, 0] = value
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(NonFiniteError, match=r"step 2: \d+ of \d+ gradients of 'layers.*NaN"),
    ):
        lt.find_supermask(model, [(X, Y), (bad, Y)], mean_squared_error, steps=5)
    assert all(np.array_equal(a, network().arrays()[n]) for n, a in model.arrays().items())
    assert lt.held(model) is None


def test_a_supermask_that_keeps_nothing_says_so():
    model = network()
    found = lt.find_supermask(model, [(X, Y)], mean_squared_error, steps=1, lr=1e-9)
    nothing = found.masks(0.9)
    assert nothing.kept == 0
    with pytest.warns(UserWarning, match=r"keeps nothing of \['layers.0.weight', 'layers.2.wei"):
        found.apply(model, nothing)
    for threshold in (7, 1.0, -0.1, float("nan"), True, "0.5"):
        with pytest.raises(InvalidValueError, match="threshold is"):
            found.masks(threshold)
    assert found.masks(0.0).kept == 120


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0}, "lr is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"batches": []}, "batches is empty"),
        ({"batches": iter([(X, Y)])}, "iterator"),
    ],
)
def test_bad_supermasks_are_refused(options, match):
    with pytest.raises(InvalidValueError, match=match):
        lt.find_supermask(
            network(), **{"batches": [(X, Y)], "loss": mean_squared_error, "steps": 2, **options}
        )


def test_an_untrained_network_reads_digits_through_a_supermask():
    """Frozen random weights; 3 classes of digits, averaged to 4 x 4 pixels."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(n_class=3, return_X_y=True)
    small = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16).astype(np.float32)
    small = (small - small.mean()) / small.std()
    targets = np.eye(3, dtype=np.float32)[labels]
    model = NumpyModel([Linear(16, 24), Relu(), Linear(24, 3)], seed=1)

    def accuracy():
        return np.mean(model(small[250:]).argmax(1) == labels[250:])

    found = lt.find_supermask(
        model, [(small[:200], targets[:200])], mean_squared_error, steps=60, lr=20.0,
        signed_constant=True, dynamic_scale=True,
    )  # fmt: skip
    untrained = accuracy()
    with found.apply(model):
        masked = accuracy()
    assert masked > max(0.75, untrained + 0.3), (untrained, masked)
