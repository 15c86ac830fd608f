"""Lottery tickets for PyTorch and Keras.

>>> import ltcore as lt
"""

from ltcore._version import __version__
from ltcore.allocation import Allocation, Group, Rate, Sparsity
from ltcore.api import Search, find_ticket, held, hold, iter_rounds, load, prune
from ltcore.backend import Backend
from ltcore.criteria import Criterion, Param
from ltcore.errors import LtcoreError
from ltcore.holds import Hold, Report
from ltcore.hookspecs import BackendSpec, Spec, hookimpl
from ltcore.masks import Masks
from ltcore.parameters import Interface, ParamInfo, Role, Site, Structure
from ltcore.plugins import criterion
from ltcore.rewinding import KeepTrained, RandomReinit, RewindContext, RewindPolicy, ToStep
from ltcore.schedules import ConstantRate, OneShot, Schedule, ToSparsity
from ltcore.search import Round
from ltcore.ticket import Ticket

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
    "held",
    "hold",
    "hookimpl",
    "iter_rounds",
    "load",
    "prune",
]
