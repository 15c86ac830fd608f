"""Schedules: formulas, functions as schedules, and the suite that holds them."""

import numpy as np
import pytest

import ltcore as lt
from ltcore.errors import InvalidValueError
from ltcore.options import schedule_from
from ltcore.schedules import FunctionSchedule
from ltcore.testing import Linear, NumpyModel, ScheduleConformance, Sgd


def test_polynomial_is_the_formula_of_zhu_and_gupta():
    schedule = lt.Polynomial(0.8, 4)
    for index in range(1, 5):
        # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt)) ** 3
        assert schedule.goal(index).amounts == pytest.approx(0.8 - 0.8 * (1 - index / 4) ** 3)
    assert schedule.goal(4) == lt.Sparsity(0.8)
    linear = lt.Polynomial({"*": 0.8, "@output": 0.4}, 2, power=1)
    assert linear.goal(1).amounts == {"*": 0.4, "@output": 0.2}
    assert schedule_from({"name": "polynomial", "power": 2}, 3, None, 0.5) == lt.Polynomial(
        0.5, 3, power=2
    )


def search(**options):
    model = NumpyModel([Linear(10, 10), Linear(10, 2)])

    def train(model):
        Sgd(model, 0.1).step(
            {n: np.ones_like(a) for n, a in model.arrays(trained_only=True).items()}
        )

    return lt.find_ticket(model, train, example=np.zeros((1, 10), np.float32), **options)


def test_a_function_of_the_round_is_a_schedule():
    found = search(schedule=lambda round_index: 1 - 0.8**round_index, rounds=5)
    assert [r.kept for r in found.rounds] == [round(120 * 0.8**n) for n in range(6)]
    assert found.ticket.provenance["goal"] == {"sparsity": 1 - 0.8**5}


def test_a_function_may_give_rates_and_selectors():
    rates = search(schedule=lambda r: lt.Rate(0.5), rounds=2)
    assert [r.kept for r in rates.rounds] == [120, 60, 30]
    table = search(schedule=lambda r: {"@output": r / 4}, rounds=2)
    assert table.ticket.masks.counts["layers.1.weight"] == (10, 20)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": lambda r: 0.5}, "say with rounds="),
        ({"schedule": lambda r: 0.5, "rounds": 2, "rate": 0.1}, r"also \['rate'\]"),
        ({"schedule": lambda r: r / 2, "rounds": 2}, "sparsity of round 2 is 1.0"),
        ({"schedule": lambda r: None, "rounds": 2}, "sparsity of round 1 is None"),
        ({"schedule": lt.OneShot(0.5), "rounds": 2}, r"also \['rounds'\]"),
        ({"schedule": lt.OneShot}, "expected a name, an object"),
        ({"schedule": 0.5}, "schedule is 0.5"),
        ({"schedule": "polynomial", "rounds": 2}, "'polynomial' does not take"),
        ({"schedule": {"name": "polynomial", "power": 0}, "rounds": 2, "sparsity": 0.5}, "power"),
    ],
)
def test_bad_schedules_are_refused_before_training(options, match):
    def train(model):
        raise AssertionError("nothing is trained")

    with pytest.raises(InvalidValueError, match=match):
        lt.find_ticket(NumpyModel([Linear(4, 3)]), train, **options)


class TestPolynomial(ScheduleConformance):
    schedule = lt.Polynomial({"*": 0.9, "@output": 0.5}, 7)


class TestToSparsity(ScheduleConformance):
    schedule = lt.ToSparsity(0.9, 5)


class TestOneShot(ScheduleConformance):
    schedule = lt.OneShot(0.9)


class TestConstantRate(ScheduleConformance):
    schedule = lt.ConstantRate({"*": 0.2, "@output": 0.1}, 3)


class TestFunction(ScheduleConformance):
    schedule = FunctionSchedule(lambda r: 1 - 0.8**r, 5)


class Broken:
    def __init__(self, goal, rounds=2):
        self.goal, self.rounds = goal, rounds


class Forgetful:
    rounds = 2
    asked = 0

    def goal(self, round_index):
        self.asked += 1
        return lt.Sparsity(self.asked / 10)


BROKEN = [
    ("test_has_rounds", Broken(lambda r: lt.Rate(0.5), 0), "at least one pruning"),
    ("test_every_round_has_a_goal", Broken(lambda r: 0.5), "an ltcore.Rate or an"),
    ("test_every_round_has_a_goal", Broken(lambda r: lt.Sparsity(1.0)), "not 1.0"),
    ("test_sparsity_never_falls", Broken(lambda r: lt.Sparsity(0.5 / r)), "never falls"),
    ("test_goals_depend_on_the_round_alone", Forgetful(), "round alone"),
]


@pytest.mark.parametrize(("test", "schedule", "promise"), BROKEN)
def test_the_suite_notices(test, schedule, promise):
    suite = type("Suite", (ScheduleConformance,), {"schedule": schedule})
    with pytest.raises(AssertionError, match=promise):
        getattr(suite(), test)()
