"""Global magnitude selection at ResNet-50 size, 80 %: weights in, masks out.

Compared: ltcore (score, allocate, select), a reference by np.partition (join |w|, partition,
compare), torch.nn.utils.prune.global_unstructured, the whole of `ltcore.prune` on a torch model
(read, select, hold), and one pass that only reads the weights. The masks of ltcore and of
np.partition must be equal. Run: python benchmarks/selection.py [--quick]
"""

import argparse
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from measure import Case, compare, fresh_process, in_turn, machine, ratio, verdict
from shapes import resnet50_shapes

from ltcore.allocation import Sparsity, by_global
from ltcore.arrays import Array
from ltcore.judging import score
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.select import select
from ltcore.weight_criteria import magnitude

SPARSITY = 0.8
MEMORY = ("ltcore", "np.partition", "torch.nn.utils.prune", "ltcore.prune(torch model)")
Weights = dict[str, Array]


def make_weights(quick: bool) -> Weights:
    """Weights as initialization draws them; ``quick``: the first fifth of the layers."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in list(resnet50_shapes().items())[: 11 if quick else None]:
        weights[name] = rng.standard_normal(shape, np.float32)
        weights[name] *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return weights


def by_ltcore(weights: Weights) -> Masks:
    infos = [ParamInfo(n, "conv", "weight", w.shape, False, True) for n, w in weights.items()]
    masks = Masks.ones({name: array.shape for name, array in weights.items()})
    scores = score(magnitude, {"weight": weights}, masks, infos, np.random.default_rng(0))
    return select(scores, masks, by_global(Sparsity(SPARSITY), masks, infos))


def by_partition(weights: Weights) -> Weights:
    flat = np.concatenate([np.abs(array).reshape(-1) for array in weights.values()])
    remove = round(SPARSITY * flat.size)
    threshold = np.partition(flat, remove)[remove]
    keep = flat > threshold
    ties = flat.size - remove - np.count_nonzero(keep)
    if ties:
        keep[np.flatnonzero(flat == threshold)[:ties]] = True
    masks, start = {}, 0
    for name, array in weights.items():
        masks[name] = keep[start : start + array.size].reshape(array.shape)
        start += array.size
    return masks


def torch_model(weights: Weights):
    """A torch module that has ``weights`` as its kernels, with their memory."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Module()
    for name, array in weights.items():
        layer = torch.nn.Conv2d(1, 1, 1) if array.ndim == 4 else torch.nn.Linear(1, 1)
        layer.weight = torch.nn.Parameter(torch.from_numpy(array))
        model.add_module(name.replace(".", "_"), layer)
    return model


def by_torch(weights: Weights) -> Callable[[], object]:
    from torch.nn.utils import prune

    layers = [(layer, "weight") for layer in torch_model(weights).children()]
    return lambda: prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)


def whole_call(weights: Weights) -> Callable[[], object]:
    import ltcore

    # prune zeroes the weights: those of a copy
    model = torch_model({name: array.copy() for name, array in weights.items()})
    return lambda: ltcore.prune(model, SPARSITY)


def cases(weights: Weights) -> dict[str, Case]:
    return {
        "ltcore": lambda: lambda: by_ltcore(weights),
        "np.partition": lambda: lambda: by_partition(weights),
        "torch.nn.utils.prune": lambda: by_torch(weights),
        "ltcore.prune(torch model)": lambda: whole_call(weights),
        "read pass": lambda: lambda: [np.max(array) for array in weights.values()],
        "ltcore again (A/A)": lambda: lambda: by_ltcore(weights),
    }


def child_times(quick: bool, rounds: int) -> None:
    weights = make_weights(quick)
    chosen, reference = by_ltcore(weights), by_partition(weights)
    assert chosen == reference, "ltcore's masks are not those of np.partition"
    assert chosen.total - chosen.kept == round(SPARSITY * chosen.total)
    del chosen, reference
    print(json.dumps(in_turn(cases(weights), rounds)))


def child_memory(quick: bool, name: str) -> None:
    """Print the peak of resident memory and of traced memory, as multiples of the weights."""
    weights = make_weights(quick)
    size = sum(array.nbytes for array in weights.values())
    run = cases(weights)[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    result = run()
    resident = (_status("VmHWM") - before) / size
    del result
    run = cases(weights)[name]()
    tracemalloc.start()
    run()
    traced = tracemalloc.get_traced_memory()[1] / size
    print(json.dumps({"resident": [resident], "traced": [traced]}))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small layers, one process")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--child", choices=["times", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "times":
        return child_times(options.quick, rounds=3)
    if options.child == "memory":
        return child_memory(options.quick, options.case)

    quick = ["--quick"] if options.quick else []
    count = 1 if options.quick else options.processes
    print(machine())
    found = [fresh_process(__file__, "--child", "times", *quick) for _ in range(count)]
    print(f"\nTime, {count} fresh processes of 3 rounds; masks equal np.partition's in all")
    compare(found, "ltcore")
    passes = median(1 / ratio(times, "read pass", "ltcore") for times in found)
    print(f"  ltcore takes the time of {passes:.1f} read passes")
    print("\nPeak extra memory, a fresh process each, as a multiple of the weights' bytes")
    print(f"  {'':<36} resident  traced")
    peaks = {}
    for name in MEMORY:
        peak = fresh_process(__file__, "--child", "memory", "--case", name, *quick)
        peaks[name] = max(peak["resident"][0], peak["traced"][0])
        print(f"  {name:<36} {peak['resident'][0]:8.2f} {peak['traced'][0]:7.2f}")
    if options.quick:
        return  # the aims are for a large model
    faster = median(ratio(times, "torch.nn.utils.prune", "ltcore") for times in found)
    slowest = min(ratio(times, "np.partition", "ltcore") for times in found)
    print()
    verdict("torch prune / ltcore", faster, 20, at_least=True)
    verdict("np.partition / ltcore, worst process", slowest, 1, at_least=True)
    verdict("ltcore's peak extra memory", peaks["ltcore"], 0.35)


if __name__ == "__main__":
    main()
