"""Every error ltcore raises on purpose.

Each is also the builtin a caller would reach for, so ``except ValueError`` keeps working.
"""

import re


class LtcoreError(Exception):
    """Root of all errors that ltcore raises on purpose."""


class InvalidValueError(LtcoreError, ValueError):
    """An argument is out of its range or not of its form."""


class NonFiniteError(InvalidValueError):
    """A parameter or a score is NaN (or infinite where that cannot be stored)."""


class SelectorError(InvalidValueError):
    """A selector is no text, or matches no parameter."""


class NothingPrunableError(InvalidValueError):
    """A model has no parameter that masks may touch."""


class NothingPrunedError(InvalidValueError):
    """What is to become a ticket has nothing pruned."""


class MaskError(LtcoreError, ValueError):
    """Masks do not fit each other or the parameters they are for."""


class ModelError(LtcoreError, TypeError):
    """No backend can drive this model."""


class ModelNotBuiltError(ModelError):
    """The model has no weights yet."""


class CapabilityError(LtcoreError, RuntimeError):
    """A backend lacks what was asked of it."""


class HoldError(LtcoreError, RuntimeError):
    """A hold is missing, is there already, or found a pruned weight that is not zero."""


class MissingDependencyError(LtcoreError, ImportError):
    """An optional package is not installed."""


class PluginError(LtcoreError, RuntimeError):
    """A plugin is broken or two plugins claim one name."""


class UnknownNameError(PluginError, LookupError):
    """No plugin offers this name."""


class MatchError(LtcoreError, ValueError):
    """A ticket does not fit a model."""


class AmbiguousMatchError(MatchError):
    """Several pairings fit and nothing proves one of them."""


class ProbeMismatchError(MatchError):
    """The model computes another function than the one the ticket was made for."""


class NotPortableError(MatchError):
    """The ticket lacks what another framework needs."""


class TicketFileError(LtcoreError, ValueError):
    """A ticket file cannot be trusted, read or written."""


class CheckpointError(LtcoreError, ValueError):
    """A checkpoint of a framework or another tool cannot be trusted, read or written."""


def gist(error: BaseException) -> str:
    """Return the type of somebody's error and the first line of it that says something.

    Keras adds colours, a frame, and every argument of the layer.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered when")]
    return f"{type(error).__name__}: {told[0][:500] if told else 'no message'}"
