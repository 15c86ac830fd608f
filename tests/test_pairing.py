"""Ties settled by trial, mappings in files, output layers for other classes, proof switched off."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from torch import nn  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import (  # noqa: E402
    AmbiguousMatchError,
    InvalidValueError,
    MatchError,
    NotPortableError,
    ProbeMismatchError,
)
from ltcore.plugins import detect  # noqa: E402

L = keras.layers
X = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)


def outputs(model, x=X):
    if isinstance(model, keras.Model):
        return np.asarray(model(x, training=False))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x)).numpy()


def ticket_of(model, x=X, **options):
    hold = lt.prune(model, sparsity=0.3, example=x[:1], **options)
    ticket = lt.Ticket.from_model(model, example=x[:1])
    hold.release()
    return ticket


def arrays(model):
    if isinstance(model, keras.Model):
        return [np.array(w) for w in model.get_weights()]
    return [v.numpy().copy() for v in model.state_dict().values()]


def refused(ticket, model, error, match, **options):
    before = arrays(model)
    with pytest.raises(error, match=match):
        ticket.apply(model, **options)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(model), strict=True))
    assert lt.held(model) is None


class Branches(nn.Module):
    """Branches that only what follows them tells apart."""

    def __init__(self, join, width=5, count=2):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, width) for _ in range(count))
        self.seconds = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.join, self.out = join, nn.Linear(width * (1 if join is sum else count), 2)

    def forward(self, x):
        ends = [b(torch.relu(a(x))) for a, b in zip(self.branches, self.seconds, strict=True)]
        return self.out(sum(ends) if self.join is sum else torch.cat(ends, 1))


def keras_branches(join, width=5, order=(0, 1)):
    """The same, its layers made in any order."""
    inputs = L.Input((6,))
    made = {i: L.Dense(width)(L.Dense(width, "relu")(inputs)) for i in order}
    ends = [made[i] for i in range(len(order))]
    joined = L.Add()(ends) if join is sum else L.Concatenate()(ends)
    return keras.Model(inputs, L.Dense(2)(joined))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 3, 1)])
def test_branches_are_told_apart_by_trial(order):
    torch.manual_seed(0)
    source, twin = Branches("cat", count=len(order)), keras_branches("cat", order=order)
    ticket = ticket_of(source)
    assert [len(one.sites) for one in ticket.probe.ties] == [len(order)] * 2
    hold = ticket.apply(twin)
    assert np.abs(outputs(twin) - outputs(source)).max() < 1e-5
    hold.release()
    back = ticket_of(twin)
    other = Branches("cat", count=len(order))
    back.apply(other, example=X[:1])
    assert np.abs(outputs(twin) - outputs(other)).max() < 1e-5


def test_trials_survive_the_file(tmp_path):
    ticket = ticket_of(Branches("cat"))
    ticket.save(tmp_path / "t")
    again = lt.load(tmp_path / "t")
    assert again == ticket
    assert [one.sites for one in again.probe.ties] == [one.sites for one in ticket.probe.ties]
    twin = keras_branches("cat", order=(1, 0))
    assert again.match(twin) == ticket.match(twin)


def test_what_computes_the_same_either_way_is_left_to_the_user():
    source, twin = Branches(sum), keras_branches(sum)
    ticket = ticket_of(source)
    refused(ticket, twin, AmbiguousMatchError,
            r"'branches.0', 'branches.1'\] could each be any of.*all ways compute the same.*"
            r"mapping=\{'branches.0': '")  # fmt: skip
    first = "dense"
    ticket.apply(twin, mapping={"branches.0": first})
    assert np.abs(outputs(twin) - outputs(source)).max() < 1e-5


def test_no_way_to_pair_a_tie_is_said_so():
    """The join differs: no assignment of branches can be right."""

    class Subtracted(Branches):
        def forward(self, x):
            ends = [b(torch.relu(a(x))) for a, b in zip(self.branches, self.seconds, strict=True)]
            return self.out(ends[0] * ends[1].tanh())

    source = Subtracted(sum)
    refused(ticket_of(source), keras_branches(sum), AmbiguousMatchError, "no way computes")


def test_without_the_probe_nothing_is_tried_or_proved():
    source, twin = Branches("cat"), keras_branches("cat", order=(1, 0))
    ticket = ticket_of(source)
    refused(ticket, twin, AmbiguousMatchError, "nothing is tried with probe=False", probe=False)
    right = ticket.match(twin)
    names = list(right)
    swapped = {names[0]: right[names[1]], names[1]: right[names[0]]}
    refused(ticket, twin, ProbeMismatchError, "made-up weights", mapping=swapped)
    ticket.apply(twin, mapping=swapped, probe=False)
    assert np.abs(outputs(twin) - outputs(source)).max() > 1e-3


def test_a_mapping_can_be_kept_and_written_by_hand(tmp_path):
    source, twin = Branches(sum), keras_branches(sum)
    ticket = ticket_of(source)
    first = "dense"
    path = tmp_path / "names.toml"
    path.write_text(f'# by hand\n[sites]\n"branches.0" = "{first}"\n')
    whole = ticket.match(twin, mapping=path)
    assert set(whole) == {site.name for site in ticket.structure.sites}
    lt.save_mapping(whole, path)
    assert lt.load_mapping(path) == whole
    ticket.apply(twin, mapping=str(path))
    assert np.abs(outputs(twin) - outputs(source)).max() < 1e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sites", "no TOML"),
        ('[site]\na = "b"', r"has \['site'\]; expected one table \[sites\]"),
        ("sites = 3", "expected one table"),
        ('[sites]\nencoder.q = "b"', "'encoder' is {'q': 'b'}; expected the name of a site"),
        ("[sites]\na = 1", "'a' is 1"),
    ],
)
def test_a_mapping_file_that_is_none(tmp_path, text, said):
    path = tmp_path / "names.toml"
    path.write_text(text)
    with pytest.raises(InvalidValueError, match=said):
        lt.load_mapping(path)


def test_names_with_any_character_survive_a_mapping_file(tmp_path):
    mapping = {'a"b\\c': "dense/ü😀", "encoder.0.q": "x y\x7f\t", "": "="}
    lt.save_mapping(mapping, tmp_path / "m")
    assert lt.load_mapping(tmp_path / "m") == mapping


def torch_classes(count, softmax=False):
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, count)]
    return nn.Sequential(*layers, *([nn.Softmax(1)] if softmax else []))


def keras_classes(count, softmax=False, hidden="relu"):
    return keras.Sequential([
        L.Input((6,)), L.Dense(8), L.BatchNormalization(epsilon=1e-5, momentum=0.9),
        L.Activation(hidden), L.Dense(count, activation="softmax" if softmax else None),
    ])  # fmt: skip


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("target", [torch_classes, keras_classes])
def test_a_head_for_other_classes_is_drawn_anew(target, classes, softmax):
    torch.manual_seed(0)
    source = torch_classes(3, softmax)
    source(torch.randn(30, 6))  # statistics that are not zero and one
    ticket = ticket_of(source)
    model = target(classes, softmax)
    before = arrays(model)
    names = [np.shape(a) for a in before]
    if classes != 3:
        refused(ticket, model, MatchError, "another architecture", example=X[:1])
    hold = ticket.apply(model, example=X[:1], head="reinit", seed=4)
    head = list(hold.masks)[-1]
    assert hold.masks[head].all(), "a new head is dense"
    assert hold.masks[head].shape == (classes, 8)
    driver, structure = hold.backend, hold.structure
    now = driver.read(model, structure)
    weights = ticket.weights()
    twins = dict(zip(ticket.structure.shapes, structure.shapes, strict=False))
    if target is torch_classes:
        for name, array in weights.items():
            same = np.array_equal(now[twins[name]], array)
            assert same == (not name.startswith("3.")), name
    hold.release()
    again = target(classes, softmax)
    hold = ticket.apply(again, example=X[:1], head="reinit", seed=4)
    for a, b in zip(arrays(model), arrays(again), strict=True):
        assert np.array_equal(a, b), "the seed decides"
    assert names == [np.shape(a) for a in arrays(model)]


@pytest.mark.parametrize("target", [torch_classes, keras_classes])
def test_a_head_of_ones_own_stays(target):
    ticket = ticket_of(torch_classes(3))
    model = target(5)
    kernel = [a for a in arrays(model) if a.shape in ((5, 8), (8, 5))][0]
    ticket.apply(model, example=X[:1], head="keep")
    assert any(np.array_equal(a, kernel) for a in arrays(model))
    fresh = target(5)
    kernel = [a for a in arrays(fresh) if a.shape in ((5, 8), (8, 5))][0]
    ticket.apply(fresh, example=X[:1], head="keep", weights="reinit", seed=1)
    assert any(np.array_equal(a, kernel) for a in arrays(fresh))


def test_what_is_below_a_new_head_is_still_proved():
    ticket = ticket_of(torch_classes(3))
    refused(ticket, keras_classes(5, hidden="tanh"), ProbeMismatchError, "do not compute",
            head="reinit")  # fmt: skip
    refused(ticket, keras_classes(5), InvalidValueError, "head is 'drop'", head="drop")


def test_which_layer_is_the_head_must_be_known():
    class BodyLast(nn.Module):
        """Registers its output layer first."""

        def __init__(self, count):
            super().__init__()
            self.fc, self.body = nn.Linear(8, count), nn.Linear(6, 8)

        def forward(self, x):
            return self.fc(self.body(x).relu())

    source = BodyLast(3)
    lt.prune(source, sparsity=0.3)
    ticket = lt.Ticket.from_model(source)
    refused(ticket, BodyLast(4), MatchError, "head='reinit' needs to know.*example=", head="reinit")
    with pytest.raises(NotPortableError, match="own framework"):
        ticket.apply(keras_classes(4))
    ticket = lt.Ticket.from_model(source, example=X[:1])
    model = BodyLast(4)
    hold = ticket.apply(model, example=X[:1], head="reinit")
    assert torch.equal(model.body.weight, source.body.weight)
    assert hold.masks["fc.weight"].all()


def test_only_layers_that_end_the_model_are_heads():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.first(x)
            return x + self.last((x + self.inner(x.relu())).relu()), x

    ticket = ticket_of(Residual())
    assert {s.name for s in ticket.structure.sites if s.is_output} >= {"first", "last"}
    assert ticket.structure.heads == {"last"}
    normed = ticket_of(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)))
    other = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    refused(normed, other, MatchError, "no dense or convolutional layer is its last",
            example=X[:1], head="keep")  # fmt: skip


def test_unequal_masks_on_biases_that_become_one_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0])

    x = np.stack([X, X[::-1]], 1)
    source = Net()
    inputs = L.Input((2, 6))
    twin = keras.Model(inputs, L.Dense(2)(L.LSTM(5, return_sequences=True)(inputs)))
    ticket = ticket_of(source, x, prunable=["lstm.b_ih", "*.w_hh"])
    refused(ticket, twin, MatchError, "the biases of 'lstm' have different masks")


def test_grey_images_come_with_or_without_their_channel():
    x = np.random.default_rng(1).standard_normal((5, 1, 8, 8)).astype(np.float32)
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3))
    ticket = ticket_of(source, x)
    twin = keras.Sequential([L.Input((8, 8)), L.Flatten(), L.Dense(9, "relu"), L.Dense(3)])
    ticket.apply(twin)
    assert np.abs(outputs(twin, x[:, 0]) - outputs(source, x)).max() < 1e-5
    lt.held(twin).release()
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3))
    ticket_of(twin, x[:, 0]).apply(other, example=x[:1])
    assert np.abs(outputs(twin, x[:, 0]) - outputs(other, x)).max() < 1e-5


def test_a_model_that_takes_other_inputs_is_told_in_a_line():
    ticket = ticket_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs = L.Input((2, 3))
    twin = keras.Model(inputs, L.Dense(2)(L.Dense(4, "relu")(L.Reshape((6,))(inputs))))
    with pytest.raises(MatchError) as told:
        ticket.apply(twin)
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert len(str(told.value)) < 800


class Aux(nn.Module):
    """Has a layer that inference does not run."""

    def __init__(self):
        super().__init__()
        self.body, self.out, self.aux = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        y = self.body(x).relu()
        return (self.out(y), self.aux(y)) if self.training else self.out(y)


def test_a_layer_that_does_not_run_is_not_carried():
    model = Aux()
    lt.prune(model, sparsity=0.3, example=X[:1])
    ticket = lt.Ticket.from_model(model, example=X[:1])
    assert ticket.probe is None
    refused(ticket, keras_classes(2), NotPortableError, "'aux' did not run on the example")


def deep(act, count=12):
    layers = [nn.Linear(6, 24), act]
    for _ in range(count):
        layers += [nn.Linear(24, 24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(24, 2))


def keras_deep(act, count=12):
    hidden = [L.Dense(24, "relu") for _ in range(count)]
    return keras.Sequential([L.Input((6,)), L.Dense(24, act), *hidden, L.Dense(2)])


@pytest.mark.parametrize("count", [2, 12, 40])
def test_depth_does_not_hide_the_first_layers(count):
    ticket = ticket_of(deep(nn.Tanh(), count))
    refused(ticket, keras_deep("relu", count), ProbeMismatchError, "do not compute")
    ticket.apply(keras_deep("tanh", count))


def test_activations_that_differ_only_far_from_zero_are_told_apart():
    ticket = ticket_of(nn.Sequential(nn.Linear(6, 24), nn.ReLU6(), nn.Linear(24, 2)))
    for act, fits in (("relu", False), ("relu6", True)):
        twin = keras.Sequential([L.Input((6,)), L.Dense(24, act), L.Dense(2)])
        if fits:
            ticket.apply(twin)
        else:
            refused(ticket, twin, ProbeMismatchError, "do not compute")


class Dead(nn.Module):
    def __init__(self, labels=False):
        super().__init__()
        self.a, self.b, self.labels = nn.Linear(6, 5), nn.Linear(5, 3), labels

    def forward(self, x):
        y = self.b(self.a(x).tanh())
        return y.argmax(1) if self.labels else (y - 1000).relu()


@pytest.mark.parametrize("labels", [False, True])
def test_outputs_that_say_nothing_prove_nothing(labels):
    model = Dead(labels)
    lt.prune(model, sparsity=0.3)
    with pytest.warns(UserWarning, match="no probe, so the ticket stays in torch.*says nothing"):
        ticket = lt.Ticket.from_model(model, example=X[:1])
    assert ticket.probe is None


def test_one_time_step_is_warned_of():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    lt.prune(model, sparsity=0.3)
    with pytest.warns(UserWarning, match=r"size of 1 along \['T'\].*larger example"):
        lt.Ticket.from_model(model, example=X[:4, None])


def test_attributes_that_precision_hides_are_compared_all_the_same():
    def net(eps):
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, eps=eps), nn.Linear(4, 2))

    ticket = ticket_of(net(1e-5))
    before = net(1e-6)
    with pytest.raises(ProbeMismatchError, match="layers differ in what they compute: .*eps"):
        ticket.apply(before, example=X[:1])


def test_equal_names_are_proved_without_an_example():
    class Net(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(6, 5), nn.Linear(5, 2), act

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    ticket = ticket_of(Net(torch.relu))
    ticket.apply(Net(torch.relu))
    refused(ticket, Net(torch.tanh), ProbeMismatchError, "do not compute")
    ticket.apply(Net(torch.tanh), probe=False)


def test_renamed_layers_and_a_new_head_in_one_framework():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.end, self.norm, self.start = nn.Linear(8, 5), nn.BatchNorm1d(8), nn.Linear(6, 8)

        def forward(self, x):
            return self.end(self.norm(self.start(x)).relu())

    source = torch_classes(3)
    ticket, model = ticket_of(source), Renamed()
    ticket.apply(model, example=X[:1], head="reinit")
    assert np.array_equal(model.start.weight.detach().numpy(), ticket.weights()["0.weight"])


def test_an_interrupt_at_any_write_leaves_the_model_as_it_was(monkeypatch):
    ticket = ticket_of(torch_classes(3))
    driver = detect(torch_classes(3))
    real = driver.write
    for doomed in range(1, 12):
        model, calls = torch_classes(3), []
        before = arrays(model)

        def write(*args, calls=calls, doomed=doomed):
            calls.append(1)
            if len(calls) == doomed:
                real(args[0], args[1], dict(list(args[2].items())[:2]))
                raise KeyboardInterrupt
            real(*args)

        monkeypatch.setattr(driver, "write", write)
        try:
            ticket.apply(model, example=X[:1])
        except KeyboardInterrupt:
            assert all(np.array_equal(a, b) for a, b in zip(before, arrays(model), strict=True))
            assert lt.held(model) is None
        else:
            assert doomed > len(calls), "every write was interrupted once"
            break
        finally:
            monkeypatch.undo()
