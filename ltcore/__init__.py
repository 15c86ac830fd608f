"""Lottery tickets for PyTorch and Keras.

>>> import ltcore as lt

Names are loaded when they are first used, so that a plugin's entry-point module, which needs a
spec and a marker, does not load the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ltcore._version import __version__

if TYPE_CHECKING:
    from ltcore.allocation import Allocation, Group, Rate, Sparsity
    from ltcore.api import Search, find_ticket, held, hold, iter_rounds, load, prune
    from ltcore.backend import Backend
    from ltcore.convert import (
        from_checkpoint,
        from_open_lth,
        from_pruned,
        from_tfmot,
        to_checkpoint,
    )
    from ltcore.criteria import Criterion, Param
    from ltcore.errors import LtcoreError
    from ltcore.holds import Hold, Report
    from ltcore.hookspecs import BackendSpec, Spec, hookimpl
    from ltcore.mappingfile import load_mapping, save_mapping
    from ltcore.masks import Masks
    from ltcore.parameters import Interface, ParamInfo, Role, Site, Structure
    from ltcore.patterns import Pattern
    from ltcore.registering import criterion, register
    from ltcore.rewinding import KeepTrained, RandomReinit, RewindContext, RewindPolicy, ToStep
    from ltcore.schedules import ConstantRate, OneShot, Schedule, ToSparsity
    from ltcore.search import Round
    from ltcore.ticket import Ticket

_HOMES = {
    "Allocation": "allocation",
    "Backend": "backend",
    "BackendSpec": "hookspecs",
    "ConstantRate": "schedules",
    "Criterion": "criteria",
    "Group": "allocation",
    "Hold": "holds",
    "Interface": "parameters",
    "KeepTrained": "rewinding",
    "LtcoreError": "errors",
    "Masks": "masks",
    "OneShot": "schedules",
    "Param": "criteria",
    "ParamInfo": "parameters",
    "Pattern": "patterns",
    "RandomReinit": "rewinding",
    "Rate": "allocation",
    "Report": "holds",
    "RewindContext": "rewinding",
    "RewindPolicy": "rewinding",
    "Role": "parameters",
    "Round": "search",
    "Schedule": "schedules",
    "Search": "api",
    "Site": "parameters",
    "Sparsity": "allocation",
    "Spec": "hookspecs",
    "Structure": "parameters",
    "Ticket": "ticket",
    "ToSparsity": "schedules",
    "ToStep": "rewinding",
    "criterion": "registering",
    "find_ticket": "api",
    "from_checkpoint": "convert",
    "from_open_lth": "convert",
    "from_pruned": "convert",
    "from_tfmot": "convert",
    "held": "api",
    "hold": "api",
    "hookimpl": "hookspecs",
    "iter_rounds": "api",
    "load": "api",
    "load_mapping": "mappingfile",
    "prune": "api",
    "register": "registering",
    "save_mapping": "mappingfile",
    "to_checkpoint": "convert",
}

__all__ = [
    "Allocation",
    "Backend",
    "BackendSpec",
    "ConstantRate",
    "Criterion",
    "Group",
    "Hold",
    "Interface",
    "KeepTrained",
    "LtcoreError",
    "Masks",
    "OneShot",
    "Param",
    "ParamInfo",
    "Pattern",
    "RandomReinit",
    "Rate",
    "Report",
    "RewindContext",
    "RewindPolicy",
    "Role",
    "Round",
    "Schedule",
    "Search",
    "Site",
    "Sparsity",
    "Spec",
    "Structure",
    "Ticket",
    "ToSparsity",
    "ToStep",
    "__version__",
    "criterion",
    "find_ticket",
    "from_checkpoint",
    "from_open_lth",
    "from_pruned",
    "from_tfmot",
    "held",
    "hold",
    "hookimpl",
    "iter_rounds",
    "load",
    "load_mapping",
    "prune",
    "register",
    "save_mapping",
    "to_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
    value = getattr(import_module(f"ltcore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
