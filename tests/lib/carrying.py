"""What tests that carry a ticket need: each framework's moves, and comparisons across the two."""

import warnings
from collections.abc import Mapping

import keras
import numpy as np
import torch

import ltcore as lt
from architectures import channels_first, channels_last, for_keras, for_torch
from ltcore.parameters import in_canonical_order
from ltcore.plugins import detect

DIRECTIONS = ("torch to keras", "keras to torch")


class Torch:
    """Builds and calls the PyTorch model of a case; arrays come and go in canonical axes."""

    packed = staticmethod(for_torch)

    @staticmethod
    def build(case):
        return case.torch()

    @staticmethod
    def outputs(model, batch):
        with torch.no_grad():
            return [y.numpy() for y in leaves(model.eval()(*map(torch.from_numpy, batch)))]

    @staticmethod
    def targets(arrays):
        return arrays

    @staticmethod
    def loss(outputs, targets):
        return sum(((y - t) ** 2).mean() for y, t in zip(leaves(outputs), targets, strict=True))


class Keras:
    """The same with the Keras model."""

    packed = staticmethod(for_keras)

    @staticmethod
    def build(case):
        return case.keras()

    @staticmethod
    def outputs(model, batch):
        found = leaves(model(for_keras(batch), training=False))
        return [channels_first(as_numpy(y)) for y in found]

    @staticmethod
    def targets(arrays):
        return [channels_last(array) for array in arrays]

    @staticmethod
    def loss(outputs, targets):
        pairs = zip(leaves(outputs), targets, strict=True)
        return sum(keras.ops.mean(keras.ops.square(keras.ops.subtract(y, t))) for y, t in pairs)


def sides(direction):
    """Return the side a ticket comes from and the one it goes to."""
    return (Torch, Keras) if direction == DIRECTIONS[0] else (Keras, Torch)


def as_numpy(tensor):
    """Return the values of a tensor of any framework."""
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def leaves(outputs):
    """Return a model's outputs as a list; those with names in the order of their names."""
    if isinstance(outputs, Mapping):
        return [outputs[name] for name in sorted(outputs)]
    return [outputs]


def carry(case, direction, sparsity, path):
    """Carry a ticket of a pruned model through a file; return the largest difference of outputs.

    Masks are equal, and gradients of kept weights agree.
    """
    ours, theirs = sides(direction)
    torch.manual_seed(0)
    keras.utils.set_random_seed(1)
    source, target = ours.build(case), theirs.build(case)
    example = case.batch(1)
    enliven(source, ours.packed(example), np.random.default_rng(2))
    hold = lt.prune(source, sparsity=sparsity, scope="layer", example=ours.packed(example))
    ticket = lt.Ticket.from_model(source, example=ours.packed(example))
    assert ticket.probe is not None, ticket.structure.why_not_portable()
    ticket.save(path)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "paired layers.*biases is")  # one bias moves as two do
        applied = lt.load(path).apply(target, example=theirs.packed(example))

    batch = case.batch(8, seed=3)
    difference = compare_outputs(ours.outputs(source, batch), theirs.outputs(target, batch))
    pairs = ticket.match(target, example=theirs.packed(example))
    compare_masks(hold, applied, pairs)
    compare_gradients(hold, applied, pairs, direction, case)
    return difference


def enliven(model, example, rng):
    """Draw all weights and statistics anew, as if trained.

    Biases and statistics differ from zero and one, so that one in the wrong place shows; kernels
    are large enough for signals to live on at high sparsity.
    """
    driver = detect(model)
    structure = driver.describe(model, example)
    drawn = {}
    for name, site, role in structure.items():
        if "float" not in role.dtype:
            continue
        if len(role.shape) > 1:
            fan_in = 1 if site.kind == "embedding" else np.prod(role.shape[1:])
            values = rng.standard_normal(role.shape) * np.sqrt(3 / fan_in)
        elif role.name in ("weight", "running_var"):
            values = rng.uniform(0.5, 1.5, role.shape)
        else:
            values = 0.2 * rng.standard_normal(role.shape)
        drawn[name] = values.astype(np.float32)
    driver.write(model, structure, drawn)


def compare_outputs(expected, found):
    """Return the largest difference over max(1, largest output); at most 1e-5."""
    differences = []
    for want, got in zip(expected, found, strict=True):
        largest = np.abs(want).max()
        assert want.std(axis=0).max() > 1e-3 * largest, "outputs tell inputs apart"
        differences.append(np.abs(want - got).max() / max(1.0, largest))
    assert max(differences) <= 1e-5
    return max(differences)


def compare_masks(hold, applied, pairs):
    """Masks are the same bit for bit once features are in canonical order."""
    ours = in_canonical_order(hold.masks, hold.structure)
    theirs = in_canonical_order(applied.masks, applied.structure)
    assert {twin(name, pairs) for name in ours} == set(theirs)
    for name, mask in ours.items():
        assert np.array_equal(mask, theirs[twin(name, pairs)]), name


def gradients(hold, side, batch):
    """Return the gradients of a loss against random targets, in canonical feature order."""
    rng = np.random.default_rng(4)
    shapes = [y.shape for y in side.outputs(hold.model, batch)]
    targets = side.targets([rng.standard_normal(shape, dtype=np.float32) for shape in shapes])
    found = hold.backend.gradients(
        hold.model, hold.structure, [(side.packed(batch), targets)], side.loss
    )
    return in_canonical_order(found, hold.structure)


def compare_gradients(hold, applied, pairs, direction, case):
    """Gradients of kept weights agree to 1e-4 of a parameter's largest.

    On one of five examples: where some activation is within rounding of a kink (ReLU6 has two),
    the last bit of it decides a gradient. A weight in the wrong place shows on all of them.
    """
    ours, theirs = sides(direction)
    gaps = []
    for seed in range(5):
        batch = case.batch(1, seed)
        want, got = gradients(hold, ours, batch), gradients(applied, theirs, batch)
        gaps.append(_largest_gap(want, got, hold, pairs))
        if gaps[-1] <= 1e-4:
            return
    raise AssertionError(f"gradients differ by {gaps} of the largest of their parameter")


def _largest_gap(ours, theirs, hold, pairs):
    """Return it over all parameters; a gradient that is zero in theory counts for little."""
    masks = in_canonical_order(hold.masks, hold.structure)
    floor = 1e-4 * max(np.abs(ours[name]).max() for name in masks)
    gaps = []
    for name, mask in masks.items():
        want, got = ours[name][mask], theirs[twin(name, pairs)][mask]
        gaps.append(np.abs(want - got).max() / max(np.abs(want).max(), floor))
    return float(max(gaps))


def twin(name, pairs):
    """Return the model's name for the parameter that a ticket calls ``name``."""
    site, _, role = name.rpartition(".")
    return f"{pairs[site]}.{role}"
