"""Checkpoints of a fit: a file from which the same fit goes on bit for bit."""

from __future__ import annotations

import zlib
from numbers import Integral
from typing import Any

import numpy as np
from scipy import sparse

from gpubackprop.errors import ModelFileError
from gpubackprop.sklearn.stochastic import StochasticFit
from gpubackprop.training.checkpoint import CheckpointFile

PROGRESS = (  # attributes of the estimator that are JSON values
    "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_",
    "best_validation_score_", "validation_loss_curve_", "_no_improvement_count",
)  # fmt: skip


class FitCheckpoint(CheckpointFile):
    """The file of one fit.

    Parameters
    ----------
    path : path
        The file.
    fit : StochasticFit
        The fit. Everything that it learns from is compared with the file's.
    """

    kind = "sklearn-checkpoint"
    version = 2

    def __init__(self, path: Any, fit: StochasticFit) -> None:
        super().__init__(path, fit.session.network.backend.to_host, _fingerprint(fit))
        self.fit = fit

    def differ(self, names: list[str], found: dict[str, Any]) -> str:
        return (
            f"is a checkpoint of another fit: {', '.join(names)} differ; remove the file, or "
            f"choose another checkpoint="
        )

    def save(self, ended: bool) -> None:
        """Replace the file, or raise StorageError; the previous file then stays."""
        fit, state = self.fit, self.fit.session.state
        kind, keys, position, has_gauss, gauss = fit.estimator._random_state.get_state()
        values = {
            "progress": {name: _as_json(getattr(fit.estimator, name)) for name in PROGRESS},
            "ended": ended,
            "has_best": fit.has_best,
            "steps": state.steps,
            "learning_rate": state.learning_rate,
            "schedule": None if state.schedule is None else state.schedule.state(),
            "random_state": [kind, position, has_gauss, gauss],
        }
        self.write(self._arrays() | {"random_keys": keys, "order": fit.order}, values)

    def resume(self) -> bool:
        """Set fit and estimator to the file's state, if there is a file.

        Returns
        -------
        bool
            Whether training is over.

        Raises
        ------
        ModelFileError
            The file is no checkpoint, is damaged, or is of another fit.
        """
        fit, targets = self.fit, self._arrays()
        estimator, state, backend = fit.estimator, fit.session.state, fit.session.network.backend
        found = self.read(targets)
        if found is None:
            return False
        arrays, values = found
        try:
            kind, position, has_gauss, gauss = values["random_state"]
            random_state = np.random.RandomState()
            random_state.set_state((kind, arrays["random_keys"], position, has_gauss, gauss))
            progress = {name: values["progress"][name] for name in PROGRESS}
            progress["loss_"] = fit.loss_type(progress["loss_"])
            progress["loss_curve_"] = list(map(fit.loss_type, progress["loss_curve_"]))
            if progress["best_loss_"] is not None:
                progress["best_loss_"] = fit.loss_type(progress["best_loss_"])
            state.steps, state.learning_rate = values["steps"], values["learning_rate"]
            fit.has_best = values["has_best"]
            if state.schedule is not None:
                state.schedule.restore(values["schedule"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{self.path}: its values are not readable ({error!r})") from error
        vars(estimator).update(progress)
        estimator._random_state, fit.order = random_state, arrays["order"]
        for name, target in targets.items():
            backend.from_host(arrays[name], target)
        fit.session.step.restored(state.steps)
        return bool(values["ended"])

    def _arrays(self) -> dict[str, Any]:
        fit = self.fit
        arrays = {"parameters": fit.session.network.parameters} | fit.session.step.state()
        return arrays if fit.best is None else arrays | {"best": fit.best}


def _as_json(value: Any) -> Any:
    """Return `value`, a number or a list of numbers, with float in place of NumPy's float32."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return float(value) if isinstance(value, np.float32) else value


def _fingerprint(fit: StochasticFit) -> dict[str, Any]:
    """Return what must be the same for the fit to go on; max_iter may grow."""
    e, network, held_out = fit.estimator, fit.session.network, fit.held_out
    to_host, seed = network.backend.to_host, e.random_state
    held = None
    if held_out is not None:
        held = _checksum(to_host, held_out.data.x, held_out.y, held_out.weights)
    return {
        "network": network.config(),
        "optimizer": fit.session.state.optimizer.config(),
        "rows": len(fit.order),
        "split": _checksum(to_host, fit.rows),
        "batch_rows": int(fit.plan.counts[0]),
        "X": _checksum(to_host, fit.session.step.data.x),
        "y": _checksum(to_host, fit.y),
        "classes": zlib.crc32(str(np.asarray(getattr(e, "classes_", ())).tolist()).encode()),
        "weights": _checksum(to_host, fit.weights),
        "held-out rows": held,
        "random_state": int(seed) if isinstance(seed, Integral) else None,
        "alpha": float(e.alpha),
        "learning_rate": str(e.learning_rate),
        "shuffle": bool(e.shuffle),
        "early_stopping": bool(e.early_stopping),
    }


def _checksum(to_host: Any, *arrays: Any) -> int:
    """Return the CRC-32 of the contents; None is skipped."""
    value = 0
    for array in arrays:
        if array is None:
            continue
        parts = [array]
        if sparse.issparse(array):
            parts = [array.data, array.indices, array.indptr]
        for part in parts:
            host = part if isinstance(part, np.ndarray) else to_host(part)
            value = zlib.crc32(np.ascontiguousarray(host).data, value)
    return value
