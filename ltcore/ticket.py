"""The ticket: masks, rewind params and provenance as one value that people save, load and apply."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from typing import Any, TypeAlias

import numpy as np

from ltcore import exchange, ticketfile
from ltcore._version import __version__
from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.discovery import registry
from ltcore.errors import HoldError, gist
from ltcore.exchange import Head, Weights
from ltcore.holds import Existing, Hold, check_free, held_by, hold_model
from ltcore.mappingfile import resolve_mapping
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore.plugins import backend_named, detect
from ltcore.probe import Probe, tolerance_for
from ltcore.proof import record_probe
from ltcore.restoring import restoring
from ltcore.ticketfile import TicketRecord

GivenMapping: TypeAlias = Mapping[str, str] | str | PathLike[str] | None
"""``{site of a ticket: site of a model}``, or a TOML file with it."""


@dataclass(frozen=True, eq=False)
class Ticket(TicketRecord):
    """A sparse subnetwork with the weights it starts from and the story of how it was found.

    See `TicketRecord` for the fields.
    """

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Ticket":
        """Read a ticket; nothing in the file is trusted before it is checked.

        Raises:
            TicketFileError: says what was found, what was expected, and where.
        """
        return cls._of(ticketfile.read(path))

    @classmethod
    def from_model(
        cls, model: Any, *, example: Any = None, backend: str | Backend | None = None
    ) -> "Ticket":
        """Return a ticket of a held model as it is now: its masks and present weights.

        What `prune` did is in its provenance.

        Args:
            model: held by `prune`, `hold` or a search.
            example: one input batch; makes the ticket portable to the other framework.
            backend: a backend or its name, where it shall not be found from the model.

        Raises:
            HoldError: the model is not held.
        """
        driver = resolve_backend(model, backend)
        hold = _require_hold(driver, model)
        structure = driver.describe(model, example)
        params = driver.read(model, structure)
        present = {"kind": "present", "step": 0}
        provenance = {**origin(driver), **hold.story, "rewind": present}
        return make_ticket(driver, model, structure, hold.masks, params, provenance)

    @cached_property
    def id(self) -> str:
        """``sha256:...`` of the manifest, which holds the hash of every tensor."""
        return ticketfile.record_id(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the ticket; the file is there whole or not at all, and an old one stays till then.

        Raises:
            NonFiniteError: a value is NaN or infinite; names the parameter.
            TicketFileError: the file cannot be written.
        """
        ticketfile.write(path, self)

    def match(
        self,
        model: Any,
        *,
        example: Any = None,
        mapping: GivenMapping = None,
        head: Head = "error",
        probe: bool = True,
        backend: str | Backend | None = None,
    ) -> dict[str, str]:
        """Return ``{site of the ticket: site of the model}``, proved; the model stays as it is.

        What is left to say by hand, `ltcore.save_mapping` keeps for the next time. For arguments
        and errors see `apply`.
        """
        exchange.check_words("ticket", head)
        driver = resolve_backend(model, backend)
        structure = driver.describe(model, example)
        given = resolve_mapping(mapping)
        return dict(
            exchange.pair(
                self, driver, model, structure, mapping=given, head=head, probe=probe
            ).sites
        )

    def apply(
        self,
        model: Any,
        *,
        example: Any = None,
        mapping: GivenMapping = None,
        weights: Weights = "ticket",
        head: Head = "error",
        probe: bool = True,
        existing: Existing = "error",
        seed: int = 0,
        backend: str | Backend | None = None,
    ) -> Hold:
        """Write the ticket into ``model``, of this framework or another, and hold its masks.

        Args:
            model: an equivalent model, built.
            example: one input batch, where the order of layers is not known from the model.
            mapping: ``{site of the ticket: site of the model}``, or a file of `save_mapping`,
                where the graph leaves a choice; some pairs are enough if they settle the rest.
            weights: ``"ticket"``; ``"keep"`` the model's own; ``"reinit"`` draws fresh ones.
            head: what becomes of output layers, for a task with other classes: ``"error"`` takes
                the ticket's, which must fit; ``"reinit"`` draws them anew (1906.02773, section 3)
                and ``"keep"`` leaves the model's own, both dense.
            probe: False skips the numerical proof that the model computes what the ticket's model
                did. A wrong pairing then goes unseen.
            existing: what to do with a hold that is there.
            seed: for ``weights="reinit"`` and ``head="reinit"``.
            backend: a backend or its name, where it shall not be found from the model.

        Raises:
            MatchError: the ticket does not fit, or nothing proves that it does.
            ModelNotBuiltError: the model has no weights yet; give ``example``.
            CapabilityError: a layer to be drawn anew does not say how it is initialized.
            InvalidValueError: an argument has a value that it cannot have.
            HoldError: the model is held and ``existing`` is ``"error"``.

        In every case the model is as it was.
        """
        exchange.check_words(weights, head)
        driver = resolve_backend(model, backend)
        check_free(driver, model, existing)
        structure = driver.describe(model, example)
        given = resolve_mapping(mapping)
        pairing = exchange.pair(
            self, driver, model, structure, mapping=given, head=head, probe=probe
        )
        with restoring(driver, model, structure):
            masks = exchange.place(
                self, driver, model, pairing, weights=weights, head=head, seed=seed
            )
            return hold_model(model, driver, structure, masks, existing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        home = "" if not self.why_not_portable() else ", not portable"
        return f"Ticket(kept={self.masks.kept}, total={self.masks.total}, {self._story()}{home})"

    def _story(self) -> str:
        told = {key: self.provenance.get(key) for key in ("framework", "criterion", "round")}
        return ", ".join(f"{key}={value}" for key, value in told.items() if value is not None)

    @classmethod
    def _of(cls, record: TicketRecord) -> "Ticket":
        return cls(**{field.name: getattr(record, field.name) for field in fields(TicketRecord)})


def resolve_backend(model: Any, backend: str | Backend | None) -> Backend:
    """Return the backend that was asked for, else the one that drives ``model``."""
    if backend is None:
        return detect(model)
    return backend_named(backend) if isinstance(backend, str) else backend


def origin(backend: Backend) -> dict[str, Any]:
    """Return which framework and versions made something."""
    versions = {"ltcore": __version__, backend.name: backend.version, "numpy": np.__version__}
    return {"framework": backend.name, "versions": versions}


def make_ticket(
    backend: Backend,
    model: Any,
    structure: Structure,
    masks: Masks,
    params: Params,
    provenance: Mapping[str, Any],
) -> Ticket:
    """Return a ticket with its probe and what plugins add to its provenance.

    A model that cannot be probed (it takes one batch size only, say) gives a ticket for its own
    framework, with a warning that says why.
    """
    ticket = Ticket(
        structure, masks, params, provenance, _probe(backend, model, structure, masks, params)
    )
    added = _from_plugins(ticket)
    if not added:
        return ticket
    return dataclasses.replace(ticket, provenance={**provenance, "plugins": added})


def _probe(
    backend: Backend, model: Any, structure: Structure, masks: Masks, params: Params
) -> Probe | None:
    try:
        probe = record_probe(backend, model, structure, masks.apply(params))
    except Exception as error:  # noqa: BLE001  the user's forward may fail in any way
        why = f"the model fails on made-up inputs: {gist(error)}"
    else:
        if probe is None:
            return None
        if probe.is_finite() and probe.varies(structure, tolerance_for(structure)):
            _warn_of_single_steps(structure)
            return probe
        why = "what the model gives for made-up inputs says nothing: constants, labels, NaN"
    warnings.warn(f"no probe, so the ticket stays in {backend.name}: {why}", stacklevel=4)
    return None


def _warn_of_single_steps(structure: Structure) -> None:
    for face in structure.inputs or ():
        single = [a for a, n in zip(face.axes, face.shape, strict=True) if a[0] in "TS" and n == 1]
        if single:
            warnings.warn(
                f"the example has a size of 1 along {single} of an input of axes {face.axes}: what "
                "the model does along it is not proved by the ticket; give a larger example",
                stacklevel=5,
            )


def _from_plugins(ticket: Ticket) -> dict[str, dict[str, str]]:
    """Return what plugins add to the provenance, under their names."""
    found = {}
    for impl in registry().manager.hook.ltcore_ticket_metadata.get_hookimpls():
        added: Any = impl.function(*([ticket] if impl.argnames else []))
        if added:
            found[impl.plugin_name] = dict(added)
    return found


def _require_hold(backend: Backend, model: Any) -> Hold:
    hold = held_by(backend, model)
    if hold is None:
        raise HoldError("the model is not held; prune or hold it first")
    return hold
