"""What a backend promises about a model at rest: its structure, its values, what it computes."""

import numpy as np

from ltcore.parameters import Interface
from ltcore.testing.cases import CASES, VOCABULARY, Case, canonical_inputs
from ltcore.testing.reference import ReferenceBackend
from ltcore.testing.suite_hooks import (
    BackendHooks,
    assert_close,
    assert_same,
    made_up_params,
    reference_of,
    renamed,
    some_masks,
)


class ValueChecks(BackendHooks):
    """Describe, read, write, forward, redraw."""

    def test_backend_introduces_itself(self) -> None:
        """A backend has a name, a version and a set of capabilities."""
        backend = self.backend()
        assert backend.name, "a backend has a name"
        assert backend.version, "a backend tells its framework's version"
        assert isinstance(backend.capabilities, frozenset), "capabilities are a frozenset of words"

    # describe

    def test_describe_is_stable(self, case: str) -> None:
        """Names are unique, and depend on the model's structure only."""
        _, first = self.built(case, seed=0)
        _, second = self.built(case, seed=1)
        names = [name for name, _, _ in first.items()]
        assert len(set(names)) == len(names), "describe gives every parameter a name of its own"
        assert first == second, (
            "describe depends on the model's structure only: a second build in the same process "
            "is described in the same words"
        )

    def test_describe_without_example(self, case: str) -> None:
        """An example adds the graph; names are the same without it."""
        model, traced = self.built(case)
        plain = self.backend().describe(model)
        assert plain.shapes.keys() == traced.shapes.keys(), (
            "describe without an example gives the same names in the same order"
        )
        assert plain.untraced or plain.why_not_portable() == "", (
            "describe says why a graph is unknown, or has traced it all the same"
        )

    def test_describe_finds_the_sites(self, case: str) -> None:
        """Sites, roles and canonical shapes are those of the table."""
        _, structure = self.built(case)
        expected = CASES[case].sites
        kinds = [site.kind for site in structure.sites]
        assert kinds == [site.kind for site in expected], "describe finds the sites of the case"
        for site, wanted in zip(structure.sites, expected, strict=True):
            shapes = {role.name: role.shape for role in site.roles if role.portable}
            assert shapes == wanted.shapes, f"{site.name!r}: roles have canonical shapes"
            state = {role.name for role in site.roles if role.portable and role.state}
            buffers = {"running_mean", "running_var"} & shapes.keys()
            assert state == buffers, f"{site.name!r}: buffers, and only they, are state"

    def test_describe_finds_the_attributes(self, case: str) -> None:
        """Attributes mean the same as the reference's."""
        _, structure = self.built(case)
        _, reference = reference_of(case)
        for site, twin in zip(structure.sites, reference.sites, strict=True):
            shared = site.attrs.keys() & twin.attrs.keys()
            found = {key: site.attrs[key] for key in shared}
            wanted = {key: twin.attrs[key] for key in shared}
            assert found == wanted, (
                f"{site.name!r}: attributes that two frameworks both record have one meaning"
            )

    def test_describe_traces_the_graph(self, case: str) -> None:
        """With an example, every site knows where its data comes from."""
        _, structure = self.built(case)
        assert not structure.why_not_portable(), "with an example, describe traces the whole graph"
        names = [site.name for site in structure.sites]
        for site, wanted in zip(structure.sites, CASES[case].sites, strict=True):
            preds = [names[index] for index in wanted.preds]
            assert list(site.preds or ()) == preds, (
                f"{site.name!r}: preds are the nearest sites upstream"
            )
            assert tuple(sorted(site.in_group or ())) == wanted.group, (
                f"{site.name!r}: in_group names the axes that a flatten merged, None without one"
            )
            assert tuple(sorted(site.out_group or ())) == wanted.out_group, (
                f"{site.name!r}: out_group names the axes that a reshape makes of its features"
            )
            assert site.is_output == (site.name == names[-1]), (
                f"{site.name!r}: is_output marks what makes the output, and nothing else"
            )

    def test_describe_finds_inputs_and_outputs(self, case: str) -> None:
        """Inputs and outputs are told in canonical axes."""
        _, structure = self.built(case)
        assert structure.inputs == (expected_input(CASES[case]),), (
            "inputs are in canonical axes, the batch axis as 0"
        )
        assert structure.outputs == (expected_output(CASES[case]),), (
            "outputs are in canonical axes, the batch axis as 0"
        )

    def test_describe_changes_nothing(self, case: str) -> None:
        """Tracing leaves parameters and buffers as they were."""
        model, structure = self.built(case)
        before = self.backend().read(model, structure)
        self.describe(model, case)
        after = self.backend().read(model, structure)
        assert_same(after, before, "describe changes neither parameters nor buffers")

    # read

    def test_read_is_repeatable(self, case: str) -> None:
        """Read gives everything, in order, and the same twice."""
        model, structure = self.built(case)
        first = self.backend().read(model, structure)
        assert list(first) == list(structure.shapes), "read gives all parameters, in order"
        shapes = {name: array.shape for name, array in first.items()}
        assert shapes == dict(structure.shapes), "read gives the shapes that describe announced"
        assert_same(self.backend().read(model, structure), first, "two reads are equal")

    def test_read_of_names(self, case: str) -> None:
        """Read gives only what is asked for."""
        model, structure = self.built(case)
        names = list(structure.shapes)[1:2]
        whole = self.backend().read(model, structure)
        part = self.backend().read(model, structure, names)
        assert_same(part, {name: whole[name] for name in names}, "read of names gives just these")

    def test_read_is_owned(self, case: str) -> None:
        """What is read is the caller's own."""
        model, structure = self.built(case)
        first = self.backend().read(model, structure)
        kept = {name: array.copy() for name, array in first.items()}
        for name, array in first.items():
            flags = array.flags
            assert type(array) is np.ndarray, f"{name!r}: read gives plain numpy arrays"
            assert flags.c_contiguous, f"{name!r}: read gives C-contiguous arrays"
            assert flags.writeable, f"{name!r}: read gives arrays that the caller may change"
            array += 1
        second = self.backend().read(model, structure)
        assert_same(second, kept, "changing what was read does not change the model")

    def test_read_is_not_changed_by_training(self, case: str) -> None:
        """What was read is no view of live weights."""
        model, structure = self.built(case)
        before = self.backend().read(model, structure)
        kept = {name: array.copy() for name, array in before.items()}
        self.train(model, case, 1)
        assert_same(before, kept, "training does not change what was read")
        after = self.backend().read(model, structure)
        kernels = [info.name for info in structure.infos if info.prunable]
        still = [name for name in kernels if np.array_equal(after[name], kept[name])]
        assert not still, f"training is seen by the next read: {still} did not move"

    # write

    def test_write_of_read_is_identity(self, case: str) -> None:
        """Written arrays are read back, bit for bit."""
        backend = self.backend()
        model, structure = self.built(case, seed=0)
        first = backend.read(model, structure)
        twin, _ = self.built(case, seed=1)
        backend.write(twin, structure, first)
        assert_same(backend.read(twin, structure), first, "what is written is read")
        backend.write(model, structure, first)
        assert_same(backend.read(model, structure), first, "writing what was read changes nothing")

    def test_write_copies(self, case: str) -> None:
        """The model and written arrays share no memory."""
        backend = self.backend()
        model, structure = self.built(case)
        given = made_up_params(structure)
        kept = {name: array.copy() for name, array in given.items()}
        backend.write(model, structure, given)
        for array in given.values():
            array += 1
        found = backend.read(model, structure, kept)
        assert_same(found, kept, "changing an array after writing it does not change the model")
        backend.write(model, structure, kept)
        again = {name: array.copy() for name, array in kept.items()}
        self.train(model, case, 1)
        assert_same(kept, again, "training does not change the arrays that were written")

    def test_write_of_some_leaves_others(self, case: str) -> None:
        """Write changes what it is given, and nothing else."""
        backend = self.backend()
        model, structure = self.built(case)
        before = backend.read(model, structure)
        for name in made_up_params(structure):
            before[name] = before[name] + 1
            backend.write(model, structure, {name: before[name]})
            found = backend.read(model, structure)
            assert_same(found, before, f"writing {name!r} changes {name!r} only")

    def test_write_keeps_zeros(self, case: str) -> None:
        """Zeros land where the canonical layout has them."""
        backend = self.backend()
        model, structure = self.built(case)
        masks = some_masks(structure)
        pruned = masks.apply(made_up_params(structure))
        backend.write(model, structure, pruned)
        assert_same(backend.read(model, structure, pruned), pruned, "zeros stay where they were")

    # forward

    def test_forward_equals_the_reference(self, case: str) -> None:
        """Canonical params compute the canonical function."""
        model, structure = self.built(case)
        reference, described = reference_of(case)
        params = made_up_params(described)
        ReferenceBackend().write(reference, described, params)
        self.backend().write(model, structure, renamed(params, described, structure))
        inputs = [canonical_inputs(case)]
        wanted = ReferenceBackend().forward(reference, described, inputs)
        found = self.backend().forward(model, structure, inputs)
        assert len(found) == 1, "forward gives one array an output"
        assert_close(
            {"output": found[0]},
            {"output": wanted[0]},
            self.tolerance,
            "with the same canonical params, forward equals the reference's (layouts, order of "
            "flattened features, padding, epsilons, inference mode)",
        )

    def test_forward_changes_nothing(self, case: str) -> None:
        """Forward leaves buffers and mode alone."""
        backend = self.backend()
        model, structure = self.built(case)
        before = backend.read(model, structure)
        inputs = [canonical_inputs(case)]
        first = backend.forward(model, structure, inputs)
        second = backend.forward(model, structure, inputs)
        assert_same({"output": second[0]}, {"output": first[0]}, "two forwards give the same bits")
        assert_same(backend.read(model, structure), before, "forward leaves params and buffers")

    # redraw

    def test_redraw_is_seeded(self, case: str) -> None:
        """Redraw gives all params, from the seed, and leaves the model."""
        backend = self.backend()
        model, structure = self.built(case)
        before = backend.read(model, structure)
        first = backend.redraw(model, structure, 1)
        shapes = {name: array.shape for name, array in first.items()}
        assert shapes == dict(structure.shapes), "redraw gives all params and buffers"
        assert_same(backend.redraw(model, structure, 1), first, "the same seed draws the same bits")
        other = backend.redraw(model, structure, 2)
        kernels = [info.name for info in structure.infos if info.prunable]
        same = [name for name in kernels if np.array_equal(other[name], first[name])]
        assert not same, f"another seed draws other weights: {same} are the same"
        assert_same(backend.read(model, structure), before, "redraw leaves the model as it was")
        some = kernels[-1:]
        again = backend.redraw(model, structure, 1, some)
        assert_same(again, {name: first[name] for name in some}, "some names draw what all do")

    def test_redraw_is_the_layers_own(self, case: str) -> None:
        """Redraw uses the scale of the layer's own initializer."""
        model, structure = self.built(case)
        built = self.backend().read(model, structure)
        drawn = self.backend().redraw(model, structure, 1)
        for info in structure.infos:
            if not info.prunable:
                continue
            ratio = float(np.std(drawn[info.name]) / np.std(built[info.name]))
            assert 0.2 < ratio < 5, (
                f"{info.name!r}: redraw uses the layer's own initializer; its spread is {ratio:.2f}"
                " times that of the built model"
            )


def expected_input(case: Case) -> Interface:
    """Return the interface that a case's input must have."""
    if case.tokens:
        return Interface(("N", "T"), (0, *case.inputs[1:]), "int32", VOCABULARY)
    return Interface(_axes(case.inputs), (0, *case.inputs[1:]), "float32")


def expected_output(case: Case) -> Interface:
    """Return the interface that a case's output must have."""
    return Interface(_axes(case.outputs), (0, *case.outputs[1:]), "float32")


def _axes(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 2:
        return ("N", "F")
    return ("N", "C", *(f"S{axis}" for axis in range(len(shape) - 2)))
