"""Each criterion at ResNet-50 size: scoring and selection, 80 %, global.

Criteria that need weights only, as a ratio to one pass that reads the weights; the others, which
measure a PyTorch model on one batch of two images of 64 x 64, as a ratio to one forward and
backward pass of it. One pass of SynFlow is timed; a pruning has a hundred.
Run: python benchmarks/criteria.py [--quick]
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from measure import Case, compare, fresh_process, in_turn, machine
from shapes import resnet50_shapes

from ltcore.allocation import Sparsity, by_global
from ltcore.arrays import Array
from ltcore.discovery import registry
from ltcore.judging import score
from ltcore.masks import Masks
from ltcore.options import criterion_from
from ltcore.parameters import ParamInfo
from ltcore.pruning import Pruning, next_masks
from ltcore.select import select
from ltcore.signals import MEASUREMENTS, Subject

GOAL = Sparsity(0.8)
AROUND = ("same_sign", "different_sign", "inverted", "shuffled")
READ, BOTH_WAYS = "read pass", "forward and backward"
Weights = dict[str, Array]


def rules() -> dict[str, object]:
    """Every criterion that is registered, SynFlow in one pass, wrappers around magnitude."""
    named: dict[str, object] = {name: name for name in registry().offers["criterion"]}
    named |= {name: {"name": name, "criterion": "magnitude"} for name in AROUND}
    return named | {"synflow": {"name": "synflow", "passes": 1}}


def measured(rule: object) -> bool:
    return bool(criterion_from(rule).needs & MEASUREMENTS.keys())


def of_weights(quick: bool) -> dict[str, Case]:
    rng = np.random.default_rng(0)
    shapes = dict(list(resnet50_shapes().items())[: 11 if quick else None])
    signals: dict[str, Weights] = {
        signal: {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        for signal in ("weight", "initial")
    }
    infos = tuple(ParamInfo(n, "conv", "weight", s, False, True) for n, s in shapes.items())
    masks = Masks.ones(shapes)

    def run(rule: object) -> Callable[[], object]:
        criterion = criterion_from(rule)
        wanted = {signal: signals[signal] for signal in {"weight", *criterion.needs} - {"rng"}}
        groups = by_global(GOAL, masks, infos)

        def chosen() -> Masks:
            scores = score(criterion, wanted, masks, infos, rng)
            found = select(scores, masks, groups)
            last = getattr(criterion, "rearrange", None)
            return last(masks, found, rng) if last else found

        return chosen

    found = {READ: lambda: lambda: [np.max(array) for array in signals["weight"].values()]}
    for name, rule in rules().items():
        if not measured(rule):
            found[name] = lambda rule=rule: run(rule)
    return found | {f"{READ} again (A/A)": found[READ]}


def of_a_model(quick: bool) -> dict[str, Case]:
    import torch
    from resnet50 import ResNet50

    from ltcore.plugins import backend_named

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ResNet50().eval()
    size = 32 if quick else 64
    x, y = torch.randn(2, 3, size, size), torch.randint(0, 1000, (2,))
    loss = torch.nn.functional.cross_entropy
    backend = backend_named("torch")
    structure = backend.describe(model, x[:1])
    infos = tuple(info for info in structure.infos if info.prunable)
    assert {i.name: i.shape for i in infos} == resnet50_shapes()
    masks = Masks.ones({info.name: info.shape for info in infos})
    subject = Subject(backend, model, structure, [(x, y)], loss)

    def both_ways() -> None:
        model.zero_grad()
        loss(model(x), y).backward()

    def run(rule: object) -> Callable[[], object]:
        pruning = Pruning(criterion_from(rule), by_global, GOAL, infos)
        weights = {"weight": backend.read(model, structure, masks)}
        rng = np.random.default_rng(0)
        return lambda: next_masks(pruning, masks, weights, subject, rng)

    found: dict[str, Case] = {BOTH_WAYS: lambda: both_ways}
    for name, rule in rules().items():
        if measured(rule):
            found[name] = lambda rule=rule: run(rule)
    return found | {f"{BOTH_WAYS} again (A/A)": found[BOTH_WAYS]}


KINDS = {"weights": (of_weights, READ), "model": (of_a_model, BOTH_WAYS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of it, once")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=list(KINDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        cases, _ = KINDS[options.child]
        return print(json.dumps(in_turn(cases(options.quick), options.rounds)))
    quick = ["--quick"] if options.quick else []
    count, rounds = (1, 1) if options.quick else (options.processes, options.rounds)
    print(machine())
    for kind, (_, base) in KINDS.items():
        arguments = ["--child", kind, "--rounds", str(rounds), *quick]
        found = [fresh_process(__file__, *arguments) for _ in range(count)]
        print(f"\nCriteria of {kind}, {count} fresh processes of {rounds} rounds; base: {base}")
        compare(found, base)


if __name__ == "__main__":
    main()
