"""Exceptions: each says what was wrong, what was got, what was wanted and what to do next.

Every class derives from `GpubackpropError` and from the builtin that a NumPy user would expect,
so that ``except ValueError`` keeps working. `StopTraining` alone is no error.
"""

from __future__ import annotations


class GpubackpropError(Exception):
    """Base of every error that this package raises on purpose."""


class ShapeError(GpubackpropError, ValueError):
    """An array has the wrong number of dimensions or the wrong sizes."""


class DtypeError(GpubackpropError, TypeError):
    """An array has a dtype that the operation cannot use."""


class OptionError(GpubackpropError, ValueError):
    """An option has an unknown name or a value outside its range."""


class ReadOnlyError(GpubackpropError, AttributeError):
    """An attribute cannot be assigned to; the message says what to do instead."""


class TargetRangeError(GpubackpropError, ValueError):
    """A class index lies outside [0, K); the message names the row and the label."""


class StateError(GpubackpropError, RuntimeError):
    """The state of a PyTorch optimizer does not fit the parameter to which it belongs."""


class DeviceUnavailable(GpubackpropError, RuntimeError):  # noqa: N818 (reads as a sentence)
    """A device was asked for by name but is absent or lacks something."""


class OutOfMemory(DeviceUnavailable):
    """A GPU has too little memory.

    Parameters
    ----------
    message : str
        The error's text.
    free : int
        Bytes that were free.
    """

    def __init__(self, message: str, free: int = 0) -> None:
        super().__init__(message)
        self.free = free


class DataError(GpubackpropError, ValueError):
    """A data file is unreadable, malformed or does not fit; the message names file, row, column."""


class ModelFileError(GpubackpropError, ValueError):
    """A model or checkpoint file is truncated, foreign, of another shape or holds NaN."""


class NonFiniteLossError(GpubackpropError, ArithmeticError):
    """The training loss became NaN or infinite; the message names the step.

    Parameters
    ----------
    message : str
        The error's text.
    step : int
        Index of the first bad update since the start of training.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[str, int], dict[str, object]]:
        """Make a pickle that has both arguments, for an error of another process."""
        return type(self), (str(self), self.step), vars(self)


class MissingDependencyError(GpubackpropError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""


class DistributedError(GpubackpropError, RuntimeError):
    """The ranks of a training disagree, or one of them has failed; the message names it."""


class StorageError(GpubackpropError, OSError):
    """A file could not be written (disk full, read-only directory); says what is kept and lost."""


class StopTraining(Exception):  # noqa: N818 (no error)
    """A callback raises it to end training after the epoch for which it is called.

    It means the same to `Trainer` and to the estimators of `gpubackprop.sklearn`. The other
    callbacks of that epoch are called too, the checkpoint is written, and training ends as it does
    after its last epoch, with the best weights if those are kept. It does not leave `fit`. If
    something else raises it, such as a metric, it leaves `fit` as every exception does.

    Examples
    --------
    >>> def enough(trainer, row):
    ...     if row["loss"] < 0.1:
    ...         raise StopTraining("the loss is below 0.1")
    """


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type.

    Parameters
    ----------
    error : BaseException
        Any error.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> one_line(OSError("no room\\nat all")), one_line(KeyboardInterrupt())
    ('no room', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
