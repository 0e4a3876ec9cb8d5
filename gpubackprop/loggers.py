"""Callbacks of trainers and estimators that write the figures where people look at them.

    Trainer(network, callbacks=[TensorBoard("runs/a")])
    MLPClassifier(callbacks=[MLflow()])

A logger opens its writer at its first epoch, so that trainers and estimators that hold one can be
copied and pickled; a copy writes to the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpubackprop._optional import require

Row = Mapping[str, Any]
_SETTINGS = (
    "network", "loss", "optimizer", "schedule", "batch_size", "l2", "clip_norm", "shuffle", "seed",
)  # fmt: skip


def figures(row: Row) -> dict[str, float]:
    """Return the numbers of an epoch's row, without the epoch.

    Parameters
    ----------
    row : mapping
        What a callback is given.

    Returns
    -------
    dict
        Numbers by their names.

    Examples
    --------
    >>> figures({"epoch": 3, "loss": 0.5, "note": "text"})
    {'loss': 0.5}
    """
    numbers = (int, float, np.number)
    kept = {name: value for name, value in row.items() if name != "epoch"}
    return {name: float(value) for name, value in kept.items() if isinstance(value, numbers)}


def settings(trained: Any) -> dict[str, Any]:
    """Return how something is trained, for the loggers that keep it beside the figures.

    Parameters
    ----------
    trained : Trainer or estimator
        What a callback is given.

    Returns
    -------
    dict
        The parameters of an estimator, or the settings of a trainer; objects as text.

    Examples
    --------
    >>> from gpubackprop import MLP, Trainer
    >>> settings(Trainer(MLP([2, 2]), batch_size=8))["batch_size"]
    8
    """
    if hasattr(trained, "get_params"):
        values = dict(trained.get_params(deep=False))
        values.pop("callbacks", None)
    else:
        values = {name: getattr(trained, name) for name in _SETTINGS}
    plain = (str, int, float, bool, type(None))
    return {name: v if isinstance(v, plain) else repr(v) for name, v in values.items()}


class _Logger:
    """The base of the loggers: `_open` is called before the first epoch's row is written.

    Attributes
    ----------
    package : str
        The package that is needed, which is the name of the extra too.
    module : str
        The module of it that is imported.
    """

    package: str
    module: str
    _writer: Any = None

    def check(self) -> Any:
        """Return the imported module.

        Returns
        -------
        module
            The module.

        Raises
        ------
        MissingDependencyError
            The package is not installed.
        """
        return require(self.module, self.package, f"log with {self.package}")

    def __call__(self, trained: Any, row: Row) -> None:
        if self._writer is None:
            self._writer = self._open(trained)
        self._write(figures(row), int(row["epoch"]))

    def _open(self, trained: Any) -> Any:
        """Return what writes; it is kept until `close`."""
        raise NotImplementedError

    def _write(self, values: dict[str, float], epoch: int) -> None:
        """Write the figures of an epoch."""
        raise NotImplementedError

    def close(self) -> None:
        """End the writing; a later epoch opens it again."""
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_writer"}


class TensorBoard(_Logger):
    """Writes every epoch's figures for TensorBoard.

    Parameters
    ----------
    folder : path
        Where the files go; ``tensorboard --logdir`` shows it.

    Examples
    --------
    >>> TensorBoard("runs/first").folder.name
    'first'
    """

    package, module = "tensorboard", "tensorboard.summary"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def _open(self, trained: Any) -> Any:
        """Return TensorBoard's writer."""
        return self.check().Writer(str(self.folder))

    def _write(self, values: dict[str, float], epoch: int) -> None:
        """Write the figures of an epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a later epoch begins another one beside it."""
        if self._writer is not None:
            self._writer.close()
        super().close()


class MLflow(_Logger):
    """Writes every epoch's figures to MLflow's active run.

    If no run is active, one is begun and given the settings; `close` ends that one and no other.

    Parameters
    ----------
    **options : Any
        Options of ``mlflow.start_run``, such as ``run_name``, if a run has to be begun.

    Examples
    --------
    >>> MLflow(run_name="first").options
    {'run_name': 'first'}
    """

    package = module = "mlflow"

    def __init__(self, **options: Any) -> None:
        self.options, self._own = options, False

    def _open(self, trained: Any) -> Any:
        """Return the module mlflow, with an active run."""
        mlflow = self.check()
        self._own = mlflow.active_run() is None
        if self._own:
            mlflow.start_run(**self.options)
            mlflow.log_params(settings(trained))  # those of an active run cannot change
        return mlflow

    def _write(self, values: dict[str, float], epoch: int) -> None:
        """Write the figures of an epoch."""
        self._writer.log_metrics(values, step=epoch)

    def close(self) -> None:
        """End the run if this logger has begun it."""
        if self._writer is not None and self._own:
            self._writer.end_run()
        super().close()


class WandB(_Logger):
    """Writes the settings and every epoch's figures to a run of Weights & Biases.

    If the program has a run, it is used; otherwise one is begun, which `close` finishes.

    Parameters
    ----------
    **options : Any
        Options of ``wandb.init``, such as ``project`` and ``mode="offline"``, if a run has to be
        begun.

    Examples
    --------
    >>> WandB(project="digits").options
    {'project': 'digits'}
    """

    package = module = "wandb"

    def __init__(self, **options: Any) -> None:
        self.options, self._own = options, False

    def _open(self, trained: Any) -> Any:
        """Return the run, which has the settings."""
        wandb = self.check()
        self._own = wandb.run is None
        run = wandb.init(**self.options) if self._own else wandb.run
        run.config.update(settings(trained), allow_val_change=True)
        return run

    def _write(self, values: dict[str, float], epoch: int) -> None:
        """Write the figures of an epoch."""
        self._writer.log({"epoch": epoch, **values})

    def close(self) -> None:
        """Finish the run if this logger has begun it."""
        if self._writer is not None and self._own:
            self._writer.finish()
        super().close()


# By the names of `gpubackprop train --log`: a function of the results' folder.
LOGGERS: dict[str, Callable[[Path], _Logger]] = {
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
    "mlflow": lambda folder: MLflow(run_name=folder.name),
    "wandb": lambda folder: WandB(name=folder.name, dir=str(folder)),
}
