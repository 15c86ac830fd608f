"""What a backend promises about a model in training: holds, watches, fresh optimizers."""

import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import numpy as np

from ltcore.arrays import Params
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore.testing.cases import canonical_inputs, canonical_targets
from ltcore.testing.reference import ReferenceBackend
from ltcore.testing.reference_model import Sgd, fit
from ltcore.testing.suite_hooks import (
    BackendHooks,
    assert_close,
    assert_pruned,
    assert_same,
    made_up_params,
    pruned_that_moved,
    reference_of,
    renamed,
    some_masks,
)


class CallbackError(Exception):
    """What a callback raises in a test."""


class TrainingChecks(BackendHooks):
    """Hold, watch, fresh_optimizer. Everything is trained by the author's own `trainer`."""

    # hold

    def test_hold_zeroes_at_once(self, case: str) -> None:
        """A hold zeroes pruned weights, and nothing else."""
        backend = self.backend()
        model, structure = self.built(case)
        masks = some_masks(structure)
        before = backend.read(model, structure)
        self.hold(model, structure, masks)
        after = backend.read(model, structure)
        assert_pruned(after, masks, "a hold zeroes pruned weights when it is made")
        assert_same(after, masks.apply(before), "a hold leaves everything else as it was")

    def test_hold_keeps_zeros_in_training(self, case: str) -> None:
        """Pruned weights stay 0.0, kept ones train."""
        backend = self.backend()
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            masks = some_masks(structure)
            self.hold(model, structure, masks)
            before = backend.read(model, structure)
            self.train(model, case, 3, optimizer=optimizer)
            after = backend.read(model, structure)
            assert_pruned(after, masks, f"pruned weights are 0.0 after training with {optimizer}")
            assert_kept_moved(before, after, masks, optimizer)

    def test_pruned_gradients_count_nowhere(self, case: str) -> None:
        """Gradients are masked before anyone takes their norm."""
        if "clipped" not in self.optimizers:
            raise SkipTest("the suite was given no optimizer called 'clipped'")
        model, structure = self.built(case)
        described = reference_of(case)[1]
        params = made_up_params(described)
        self.backend().write(model, structure, renamed(params, described, structure))
        masks = Masks(renamed(some_masks(described), described, structure))
        self.hold(model, structure, masks)
        self.train(model, case, 2, optimizer="clipped")
        found = self.backend().read(model, structure, [info.name for info in structure.infos])
        wanted = renamed(trained_reference(case, params, 2), described, structure)
        assert_close(
            found,
            wanted,
            1e-4,
            "gradients of pruned weights do not count where gradients are clipped: training under "
            "a hold equals the reference's",
        )

    def test_hold_of_every_trained_parameter(self, case: str) -> None:
        """Whatever masks name is held."""
        model, structure = self.built(case)
        masks = some_masks(structure, every=True)
        self.hold(model, structure, masks)
        self.train(model, case, 3)
        after = self.backend().read(model, structure)
        assert_pruned(after, masks, "biases, norms and embeddings are held too, where masks say so")

    def test_hold_with_an_optimizer_under_way(self, case: str) -> None:
        """Momentum gathered before a hold moves no zero."""
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            train = self.trainer(model, case, optimizer)
            train(2)
            masks = some_masks(structure)
            self.hold(model, structure, masks)
            train(2)
            after = self.backend().read(model, structure)
            assert_pruned(
                after, masks, f"{optimizer}: momentum from before a hold moves no pruned weight"
            )

    def test_hold_that_keeps_everything_changes_no_training(self, case: str) -> None:
        """Masks of ones are no masks."""
        backend = self.backend()
        free, structure = self.built(case)
        held, _ = self.built(case)
        masks = Masks.ones({info.name: info.shape for info in structure.infos})
        self.hold(held, structure, masks)
        self.train(free, case, 3)
        self.train(held, case, 3)
        assert_close(
            backend.read(held, structure),
            backend.read(free, structure),
            1e-5,
            "a hold that keeps everything trains as no hold does",
        )

    def test_update_holds_other_masks(self, case: str) -> None:
        """Update prunes more, or other weights, at once."""
        backend = self.backend()
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            first, second = some_masks(structure, seed=0), some_masks(structure, seed=1)
            train = self.trainer(model, case, optimizer)
            hold = self.hold(model, structure, first)
            train(2)
            hold.update(first & second)
            found = backend.read(model, structure)
            assert_pruned(found, first & second, f"{optimizer}: update zeroes at once")
            train(2)
            found = backend.read(model, structure)
            assert_pruned(found, first & second, f"{optimizer}: update holds from then on")
            hold.update(second)
            train(2)
            found = backend.read(model, structure)
            assert_pruned(found, second, f"{optimizer}: update may prune other weights")
            freed = Masks({name: first[name] | ~second[name] for name in first})
            assert pruned_that_moved(found, freed), (
                f"{optimizer}: weights that the new masks keep train again"
            )

    def test_enforce_zeroes_what_was_written(self, case: str) -> None:
        """Enforce zeroes anything, NaN too."""
        backend = self.backend()
        model, structure = self.built(case)
        masks = some_masks(structure)
        before = backend.read(model, structure)
        hold = self.hold(model, structure, masks)
        diverged = {
            name: np.where(mask, before[name], np.float32(np.nan)) for name, mask in masks.items()
        }
        backend.write(model, structure, diverged)
        hold.enforce()
        found = backend.read(model, structure)
        assert_same(found, masks.apply(before), "enforce zeroes pruned weights, and only those")

    def test_release_frees_the_weights(self, case: str) -> None:
        """After release all weights train."""
        backend = self.backend()
        model, structure = self.built(case)
        masks = some_masks(structure)
        hold = self.hold(model, structure, masks)
        train = self.trainer(model, case)
        train(1)
        before = backend.read(model, structure)
        hold.release()
        assert_same(backend.read(model, structure), before, "release changes no weight")
        train(3)
        found = backend.read(model, structure)
        assert pruned_that_moved(found, masks), "after release, pruned weights train again"

    def test_hold_after_release(self, case: str) -> None:
        """A released model can be held again, by other masks."""
        backend = self.backend()
        model, structure = self.built(case)
        first, second = some_masks(structure, seed=0), some_masks(structure, seed=1)
        train = self.trainer(model, case)
        self.hold(model, structure, first).release()
        train(1)
        self.hold(model, structure, second)
        train(2)
        found = backend.read(model, structure)
        assert_pruned(found, second, "a model that was released can be held again")
        freed = Masks({name: first[name] | ~second[name] for name in first})
        assert pruned_that_moved(found, freed), "nothing of a released hold is left"

    def test_copy_of_a_held_model_is_free(self, case: str) -> None:
        """A deep copy of a held model is a plain model."""
        self._check_free(case, self.copy, "a deep copy")

    def test_pickle_of_a_held_model_is_free(self, case: str) -> None:
        """A pickle of a held model is a plain model."""

        def through_pickle(model: Any) -> Any:
            return pickle.loads(pickle.dumps(model))  # noqa: S301  made one line earlier

        self._check_free(case, through_pickle, "a pickle")

    def _check_free(self, case: str, duplicate: Any, what: str) -> None:
        """Check that a duplicate of a held and watched model is a plain model."""
        backend = self.backend()
        model, structure = self.built(case)
        masks = some_masks(structure)
        self.hold(model, structure, masks)
        watch = self.watch(model, structure, [1])
        before = backend.read(model, structure)
        twin = duplicate(model)
        twin_structure = self.describe(twin, case)
        assert_same(
            backend.read(twin, twin_structure), before, f"{what} of a held model is equal to it"
        )
        self.train(twin, case, 3)
        found = backend.read(twin, twin_structure)
        assert pruned_that_moved(found, masks), f"{what} of a held model is not held"
        assert_same(backend.read(model, structure), before, f"training {what} leaves the original")
        assert watch.steps == 0, f"training {what} counts no update of the original"

    def test_hold_dies_with_the_model(self, case: str) -> None:
        """A hold keeps no model alive."""
        model, structure = self.built(case)
        hold = self.backend().hold(model, structure, some_masks(structure))
        alive = weakref.ref(model)
        del model
        gc.collect()
        assert alive() is None, "a hold does not keep its model alive, though its handle lives"
        hold.enforce()
        hold.release()

    # watch

    def test_watch_counts_updates(self, case: str) -> None:
        """A watch counts updates, from when it was made."""
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            train = self.trainer(model, case, optimizer)
            train(1)
            watch = self.watch(model, structure, [])
            assert watch.steps == 0, "a watch counts from the moment it is made"
            train(2)
            train(1)
            assert watch.steps == 3, f"a watch counts every update of {optimizer}"
            assert not watch.snapshots, "nobody asked for snapshots"

    def test_watch_takes_snapshots(self, case: str) -> None:
        """A snapshot is the model after that many updates."""
        backend = self.backend()
        model, structure = self.built(case)
        short = self.watch(model, structure, [1, 5])
        self.train(model, case, 1)
        after_one = backend.read(model, structure)
        assert short.snapshots.keys() == {1}, "a step that was not reached has no snapshot"
        assert_same(short.snapshots[1], after_one, "snapshot 1 is the model after 1 update")

        model, structure = self.built(case)
        long = self.watch(model, structure, [1, 3])
        self.train(model, case, 3)
        assert set(long.snapshots) == {1, 3}, "each step asked for and reached has a snapshot"
        assert_same(
            long.snapshots[1],
            after_one,
            "snapshot k is what k updates make, whatever comes after (buffers too)",
        )
        now = backend.read(model, structure)
        assert_same(long.snapshots[3], now, "snapshot 3 is the model after 3 updates")

    def test_watch_sees_held_weights(self, case: str) -> None:
        """Snapshots are taken after masks are applied."""
        model, structure = self.built(case)
        masks = some_masks(structure)
        watch = self.watch(model, structure, [2])
        self.hold(model, structure, masks)
        self.train(model, case, 2)
        assert_pruned(
            watch.snapshots[2], masks, "a snapshot shows pruned weights as 0.0, also where the "
            "watch is older than the hold"
        )  # fmt: skip

    def test_watch_keeps_the_first_input(self, case: str) -> None:
        """The first input serves as an example to describe."""
        model, structure = self.built(case)
        watch = self.watch(model, structure, [])
        assert watch.first_input is None, "a watch has no input before the model saw one"
        self.train(model, case, 1)
        assert watch.first_input is not None, "a watch keeps one example of the first input"
        described = self.backend().describe(model, watch.first_input)
        assert described == structure, "describe takes the first input as its example"

    def test_watch_stops(self, case: str) -> None:
        """A stopped watch sees nothing more, and what it saw stays."""
        backend = self.backend()
        model, structure = self.built(case)
        watch = self.watch(model, structure, [1, 2])
        train = self.trainer(model, case)
        train(1)
        seen = backend.read(model, structure)
        watch.stop()
        train(2)
        assert watch.steps == 1, "a watch that was stopped does not count"
        assert set(watch.snapshots) == {1}, "a watch that was stopped takes no snapshot"
        assert_same(watch.snapshots[1], seen, "a snapshot does not change with later training")

    def test_watch_changes_no_training(self, case: str) -> None:
        """Watching is free of side effects."""
        backend = self.backend()
        free, structure = self.built(case)
        watched, _ = self.built(case)
        self.watch(watched, structure, [1])
        self.train(free, case, 3)
        self.train(watched, case, 3)
        found, wanted = backend.read(watched, structure), backend.read(free, structure)
        assert_close(found, wanted, 1e-5, "a watched model trains as any other")

    def test_callback_hears_of_updates(self, case: str) -> None:
        """A callback gets the number of updates, and finds the model that they made."""
        backend = self.backend()
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            masks = some_masks(structure)
            heard: dict[int, Params] = {}

            def hear(step: int, model: Any = model, heard: dict[int, Params] = heard) -> None:
                assert step not in heard, f"the callback hears of {step} updates once"
                heard[step] = backend.read(model, structure)  # noqa: B023  called in this round

            watch = self.watch(model, structure, [1, 3], hear)
            self.hold(model, structure, masks)
            train = self.trainer(model, case, optimizer)
            train(1)
            assert list(heard) == [1], f"{optimizer}: the callback hears of the first update"
            train(2)
            assert list(heard) == sorted(heard), f"{optimizer}: the callback hears in order"
            assert max(heard) == watch.steps == 3, f"{optimizer}: the callback hears of the last"
            now = backend.read(model, structure)
            assert_same(heard[3], now, f"{optimizer}: the callback sees what the update made")
            assert_same(watch.snapshots[1], heard[1], "snapshots are taken of the same weights")
            assert_pruned(heard[1], masks, "the callback sees pruned weights as 0.0")

    def test_callback_changes_the_model(self, case: str) -> None:
        """What a callback writes and holds is what the next update starts from."""
        first, second = (some_masks(self.built(case)[1], seed=seed) for seed in (0, 1))
        inside, outside = (
            self._changed_after_one(case, first, second, in_callback=answer)
            for answer in (True, False)
        )
        assert_pruned(inside, second, "hold.update in a callback holds from then on")
        assert_close(
            inside,
            outside,
            1e-5,
            "what a callback writes and holds is trained on as if it were done between two calls",
        )

    def _changed_after_one(
        self, case: str, first: Masks, second: Masks, *, in_callback: bool
    ) -> Params:
        """Train three updates, after the first of which weights and masks are changed."""
        backend = self.backend()
        model, structure = self.built(case)
        hold = self.hold(model, structure, first)
        fresh = backend.redraw(model, structure, 5)

        def change(step: int) -> None:
            if step == 1:
                backend.write(model, structure, fresh)
                hold.update(second)

        watch = self.watch(model, structure, [1], change if in_callback else None)
        train = self.trainer(model, case)
        train(1)
        if not in_callback:
            change(1)
        changed = {name: second.apply(fresh)[name] for name in first}
        assert_same(
            backend.read(model, structure, first),
            changed,
            "what a callback writes is there when training goes on, under the masks that it holds",
        )
        assert_pruned(
            watch.snapshots[1], first, "a snapshot is what the update made, before the callback"
        )
        train(2)
        return backend.read(model, structure)

    def test_callback_ends(self, case: str) -> None:
        """A stopped watch calls nobody, also where the callback itself stops it."""
        model, structure = self.built(case)
        heard: list[int] = []
        watch = self.watch(model, structure, [], heard.append)
        train = self.trainer(model, case)
        train(1)
        watch.stop()
        train(1)
        assert heard == [1], "the callback of a watch that was stopped is not called"

        def stop(step: int) -> None:
            heard.append(step)
            itself.stop()

        itself = self.watch(model, structure, [], stop)
        train(1)
        train(1)
        assert heard == [1, 1], "a callback may stop its watch"
        assert itself.steps == 1, "a watch that its callback stopped does not count"

    def test_callback_errors_reach_the_loop(self, case: str) -> None:
        """An error in a callback ends the training it is called from."""

        def fail(step: int) -> None:
            raise CallbackError(f"after update {step}")

        model, structure = self.built(case)
        self.watch(model, structure, [], fail)
        message = ""
        try:
            self.train(model, case, 2)
        except CallbackError as error:
            message = str(error)
        assert message, "an error in a callback reaches the user's loop"
        assert message == "after update 1", "an error in a callback ends training at once"

    # fresh_optimizer

    def test_fresh_optimizer(self, case: str) -> None:
        """An optimizer carried over starts the next training without state."""
        backend = self.backend()
        for optimizer in self.optimizers:
            model, structure = self.built(case)
            start = backend.read(model, structure)
            train = self.trainer(model, case, optimizer)
            backend.fresh_optimizer(model, 0)
            assert_same(
                backend.read(model, structure), start, "fresh_optimizer changes no parameter"
            )
            self.watched(train, model, structure)
            first = backend.read(model, structure)
            backend.write(model, structure, start)
            backend.fresh_optimizer(model, 0)
            self.watched(train, model, structure)
            assert_close(
                backend.read(model, structure),
                first,
                1e-5,
                f"{optimizer}: after fresh_optimizer, an optimizer that trained before starts "
                "anew: the same start ends the same",
            )

    def watched(self, train: Callable[[int], object], model: Any, structure: Structure) -> None:
        """Make two updates under a watch, as a search does."""
        watch = self.backend().watch(model, structure, [])
        try:
            train(2)
        finally:
            watch.stop()


def assert_kept_moved(before: Params, after: Params, masks: Masks, optimizer: str) -> None:
    """Assert that training moved kept weights of every held parameter."""
    still = [
        name
        for name, mask in masks.items()
        if np.array_equal(before[name][mask], after[name][mask])
    ]
    assert not still, f"kept weights train with {optimizer}: those of {still} did not move"


def trained_reference(case: str, params: Params, updates: int) -> Params:
    """Return the trained parameters of the reference after held updates with clipped gradients."""
    backend = ReferenceBackend()
    model, structure = reference_of(case)
    backend.write(model, structure, params)
    backend.hold(model, structure, some_masks(structure))
    clipped = Sgd(model, lr=0.1, clip_norm=0.1)
    fit(model, clipped, canonical_inputs(case), canonical_targets(case), updates)
    return backend.read(model, structure, [info.name for info in structure.infos])
