"""What it costs per training step to keep pruned weights at zero.

LeNet-300-100, batch 60, one thread, 80 % pruned after a warm-up, so that the optimizer has
momentum for the weights that go. In torch (fused Adam, SGD with momentum): dense, held by ltcore,
both guards written by hand in the fewest lines, torch.nn.utils.prune. In Keras: plain `fit`, held
by ltcore, a callback that assigns masked weights after every batch. In ResNet-18 (CIFAR size),
where a whole-step ratio drowns in noise: the time inside ltcore's hooks, as a share of the step.
After timing, every pruned weight must be exactly +0.0. Run: python benchmarks/holding.py [--quick]
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from functools import wraps
from statistics import median
from typing import Any

import numpy as np
from measure import compare, fresh_process, in_turn, machine, ratio, verdict

import ltcore as lt

SPARSITY, BATCH = 0.8, 60
STEPS = {"adam": 25, "sgd": 25, "keras": 100}
"""Steps in a timed block: few, against noise; more where each block starts a `fit`."""
ROUNDS = {"adam": 40, "sgd": 40, "keras": 11}

Block = Callable[[], object]


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((steps * BATCH, 784), np.float32)
    return inputs, rng.integers(0, 10, steps * BATCH)


def assert_zero(hold: lt.Hold) -> None:
    live = hold.backend.read(hold.model, hold.structure, hold.masks)
    for name, mask in hold.masks.items():
        pruned = live[name][~mask]
        assert pruned.size, f"nothing was pruned in {name}"
        assert not pruned.view(np.uint32).any(), f"a pruned weight of {name} is not +0.0"


def torch_cases(optimizer_name: str) -> tuple[dict[str, Block], Callable[[], None]]:
    """Return the cases and a check for after."""
    import torch
    from torch import nn
    from torch.nn.utils import prune

    torch.set_num_threads(1)
    inputs, targets = (
        torch.from_numpy(array).split(BATCH) for array in data(STEPS[optimizer_name])
    )

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        sizes = (nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))
        return nn.Sequential(sizes[0], nn.ReLU(), sizes[1], nn.ReLU(), sizes[2])

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        if optimizer_name == "adam":
            return torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def trainer(model: nn.Module, chosen: torch.optim.Optimizer) -> Block:
        def train() -> None:
            for x, y in zip(inputs, targets, strict=True):
                chosen.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                chosen.step()

        return train

    def dense() -> Block:
        model = make()
        train = trainer(model, optimizer(model))
        train()
        return train

    def held() -> tuple[Block, lt.Hold]:
        model = make()
        train = trainer(model, optimizer(model))
        train()
        return train, lt.prune(model, SPARSITY)

    def by_hand() -> Block:
        """Gradients masked as they come, weights after the step, momentum cleared once."""
        model = make()
        chosen = optimizer(model)
        train = trainer(model, chosen)
        train()
        with lt.prune(model, SPARSITY) as hold:
            masks = {n: torch.from_numpy(m.copy()) for n, m in hold.masks.items()}
        params = dict(model.named_parameters())
        weights = []
        for name, mask in masks.items():
            bits = -mask.to(torch.int32)
            weights.append((params[name].detach().view(torch.int32), bits))
            for value in chosen.state[params[name]].values():
                if value.shape == mask.shape:
                    value.mul_(mask)

            def mask_gradient(param: torch.Tensor, bits: torch.Tensor = bits) -> None:
                param.grad.view(torch.int32).bitwise_and_(bits)

            params[name].register_post_accumulate_grad_hook(mask_gradient)

        def mask_weights(*_: Any) -> None:
            for weight, bits in weights:
                weight.bitwise_and_(bits)

        chosen.register_step_post_hook(mask_weights)
        return train

    def pruned() -> Block:
        model = make()
        trainer(model, optimizer(model))()
        layers = [(layer, "weight") for layer in model if isinstance(layer, nn.Linear)]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)
        return trainer(model, optimizer(model))  # its weights are new parameters

    held_block, hold = held()
    blocks = {
        "dense": dense(),
        "ltcore": held_block,
        "both guards by hand": by_hand(),
        "torch.nn.utils.prune": pruned(),
        "dense again (A/A)": dense(),
    }
    return blocks, lambda: assert_zero(hold)


def keras_cases() -> tuple[dict[str, Block], Callable[[], None]]:
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    inputs, targets = data(STEPS["keras"])

    def make() -> keras.Model:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(units, "relu") for units in (300, 100)]
        model = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss)
        return model

    def fitting(model: keras.Model, *callbacks: keras.callbacks.Callback) -> Block:
        def train() -> None:
            model.fit(inputs, targets, BATCH, callbacks=list(callbacks), shuffle=False, verbose=0)

        train()
        return train

    class Assign(keras.callbacks.Callback):
        def __init__(self, masked: list[tuple[Any, Any]]) -> None:
            super().__init__()
            self.masked = masked

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for variable, mask in self.masked:
                variable.assign(variable * mask)

    def held() -> tuple[Block, lt.Hold]:
        model = make()
        fitting(model)  # warm
        hold = lt.prune(model, SPARSITY)
        return fitting(model), hold

    def by_callback() -> Block:
        model = make()
        fitting(model)
        with lt.prune(model, SPARSITY):
            kernels = [layer.kernel for layer in model.layers]
            masked = [(k, keras.ops.cast(k.numpy() != 0, "float32")) for k in kernels]
        return fitting(model, Assign(masked))

    held_block, hold = held()
    blocks = {
        "plain fit": fitting(make()),
        "ltcore": held_block,
        "callback that assigns": by_callback(),
        "plain fit again (A/A)": fitting(make()),
    }
    return blocks, lambda: assert_zero(hold)


def child_blocks(kind: str, rounds: int) -> None:
    if kind == "keras":
        blocks, check = keras_cases()
    else:
        blocks, check = torch_cases(kind)
    times = in_turn({name: (lambda run=run: run) for name, run in blocks.items()}, rounds)
    check()
    print(json.dumps(times))


def resnet18(width: int) -> Any:
    """ResNet-18 for 32 x 32 images; 11,173,962 parameters at ``width`` 64."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            self.skip = nn.Sequential()
            if inputs != outputs:
                self.skip.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
                self.skip.append(nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.skip(x)).relu()

    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(4):
        for stride in (2 if stage else 1, 1):
            layers.append(Block(inputs, width << stage, stride))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Clock:
    """Adds up the time inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: Any, name: str) -> None:
        """Put a timed version of ``owner.name`` in its place."""
        inner = getattr(owner, name)

        @wraps(inner)
        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            result = inner(*arguments)
            self.seconds += time.process_time() - start
            return result

        setattr(owner, name, timed)


def child_share(batch: int, width: int, steps: int) -> None:
    """Print seconds in all of ltcore's hooks and in the whole step, step by step."""
    import torch

    from ltcore_torch import _hold, _steps

    clock = Clock()  # the four doors by which torch comes into ltcore
    clock.watch(_steps, "_before")
    clock.watch(_steps, "_after")
    clock.watch(_hold._MaskGradient, "__call__")
    clock.watch(_hold._ForwardCheck, "__call__")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet18(width)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    times: dict[str, list[float]] = {"hooks": [], "step": []}
    hold = None
    for step in range(steps + 2):  # one to warm the optimizer, one that clears its momentum
        start = time.process_time()
        clock.seconds = 0.0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step > 1:
            times["hooks"].append(clock.seconds)
            times["step"].append(time.process_time() - start)
        hold = hold or lt.prune(model, SPARSITY)
    assert_zero(hold)
    print(json.dumps(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, one process")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument(
        "--child", choices=["adam", "sgd", "keras", "share"], help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.child == "share":
        return child_share(*((8, 8, 2) if options.quick else (128, 64, 5)))
    if options.child:
        return child_blocks(options.child, 2 if options.quick else ROUNDS[options.child])

    quick = ["--quick"] if options.quick else []
    count = 1 if options.quick else options.processes
    print(machine())
    for kind, title, base in (
        ("adam", "torch, fused Adam", "dense"),
        ("sgd", "torch, SGD with momentum", "dense"),
        ("keras", "Keras on TensorFlow, Adam", "plain fit"),
    ):
        if importlib.util.find_spec(title.split()[0].rstrip(",").lower()) is None:
            print(f"\n{title}: not installed")
            continue
        found = [fresh_process(__file__, "--child", kind, *quick) for _ in range(count)]
        print(f"\nLeNet-300-100, {title}: a step; {count} fresh processes")
        compare(found, base, per_call=STEPS[kind], unit=1e-6)
        if kind == "keras":
            held = median(ratio(times, "ltcore", "callback that assigns") for times in found)
            verdict("ltcore / callback", held, 0.75)
            floor = median(ratio(times, base, "callback that assigns") for times in found)
            print(f"  plain fit takes {floor:.2f} of the callback's step; no holding can take less")
        else:
            verdict("ltcore / dense", median(ratio(t, "ltcore", "dense") for t in found), 1.10)

    times = fresh_process(__file__, "--child", "share", *quick)
    share = [part / whole for part, whole in zip(times["hooks"], times["step"], strict=True)]
    size = "tiny, batch 8" if options.quick else "batch 128"
    print(f"\nResNet-18, CIFAR size, {size}, one thread, SGD with momentum: {len(share)} steps")
    step, hooks = (median(times[key]) * 1e3 for key in ("step", "hooks"))
    print(f"  step {step:.1f} ms, of which in hooks {hooks:.2f} ms")
    print(f"  share {median(share):.2%} [{min(share):.2%}, {max(share):.2%}]")
    verdict("share of the step", median(share), 0.01)


if __name__ == "__main__":
    main()
