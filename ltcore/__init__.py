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
    from ltcore.earlybird import EarlyBird, early_bird
    from ltcore.errors import LtcoreError
    from ltcore.gradual import GradualPruning, prune_gradually
    from ltcore.holds import Hold, Report
    from ltcore.hookspecs import BackendSpec, Spec, hookimpl
    from ltcore.mappingfile import load_mapping, save_mapping
    from ltcore.masks import Masks
    from ltcore.parameters import Interface, ParamInfo, Role, Site, Structure
    from ltcore.patterns import Pattern
    from ltcore.registering import criterion, register
    from ltcore.rewind_draws import LayerConstant, RandomReinit, Resample, RewindNoise
    from ltcore.rewind_points import KeepTrained, LearningRateRewind, ToStep
    from ltcore.rewinding import RewindContext, RewindPolicy
    from ltcore.schedules import ConstantRate, OneShot, Polynomial, Schedule, ToSparsity
    from ltcore.search import Round
    from ltcore.sparse_methods import SET, RigL, SparseMethod
    from ltcore.sparse_training import SparseTraining, train_sparse
    from ltcore.supermask import Supermask, find_supermask
    from ltcore.ticket import Ticket

_HOMES = {
    "Allocation": "allocation",
    "Backend": "backend",
    "BackendSpec": "hookspecs",
    "ConstantRate": "schedules",
    "Criterion": "criteria",
    "EarlyBird": "earlybird",
    "GradualPruning": "gradual",
    "Group": "allocation",
    "Hold": "holds",
    "Interface": "parameters",
    "KeepTrained": "rewind_points",
    "LayerConstant": "rewind_draws",
    "LearningRateRewind": "rewind_points",
    "LtcoreError": "errors",
    "Masks": "masks",
    "OneShot": "schedules",
    "Param": "criteria",
    "ParamInfo": "parameters",
    "Pattern": "patterns",
    "Polynomial": "schedules",
    "RandomReinit": "rewind_draws",
    "Rate": "allocation",
    "Report": "holds",
    "Resample": "rewind_draws",
    "RewindContext": "rewinding",
    "RewindNoise": "rewind_draws",
    "RewindPolicy": "rewinding",
    "RigL": "sparse_methods",
    "Role": "parameters",
    "Round": "search",
    "SET": "sparse_methods",
    "Schedule": "schedules",
    "Search": "api",
    "Site": "parameters",
    "SparseMethod": "sparse_methods",
    "SparseTraining": "sparse_training",
    "Sparsity": "allocation",
    "Spec": "hookspecs",
    "Structure": "parameters",
    "Supermask": "supermask",
    "Ticket": "ticket",
    "ToSparsity": "schedules",
    "ToStep": "rewind_points",
    "criterion": "registering",
    "early_bird": "earlybird",
    "find_supermask": "supermask",
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
    "prune_gradually": "gradual",
    "register": "registering",
    "save_mapping": "mappingfile",
    "to_checkpoint": "convert",
    "train_sparse": "sparse_training",
}

__all__ = [
    "SET",
    "Allocation",
    "Backend",
    "BackendSpec",
    "ConstantRate",
    "Criterion",
    "EarlyBird",
    "GradualPruning",
    "Group",
    "Hold",
    "Interface",
    "KeepTrained",
    "LayerConstant",
    "LearningRateRewind",
    "LtcoreError",
    "Masks",
    "OneShot",
    "Param",
    "ParamInfo",
    "Pattern",
    "Polynomial",
    "RandomReinit",
    "Rate",
    "Report",
    "Resample",
    "RewindContext",
    "RewindNoise",
    "RewindPolicy",
    "RigL",
    "Role",
    "Round",
    "Schedule",
    "Search",
    "Site",
    "SparseMethod",
    "SparseTraining",
    "Sparsity",
    "Spec",
    "Structure",
    "Supermask",
    "Ticket",
    "ToSparsity",
    "ToStep",
    "__version__",
    "criterion",
    "early_bird",
    "find_supermask",
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
    "prune_gradually",
    "register",
    "save_mapping",
    "to_checkpoint",
    "train_sparse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
    value = getattr(import_module(f"ltcore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
