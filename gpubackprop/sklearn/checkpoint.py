"""Checkpoints of a fit: a file from which the same fit goes on bit for bit."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.errors import ModelFileError
from gpubackprop.tensorfile import read_tensors, remove_leftovers, require_array, write_tensors

if TYPE_CHECKING:
    from gpubackprop.sklearn.stochastic import StochasticFit

KIND, VERSION = "sklearn-checkpoint", 1
PROGRESS = (  # attributes of the estimator, JSON values
    "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_",
    "best_validation_score_", "validation_loss_curve_", "_no_improvement_count",
)  # fmt: skip


class FitCheckpoint:
    """The file of one fit.

    Parameters
    ----------
    path : the file. x : the training rows, a sample of which is compared when the fit goes on.
    """

    def __init__(self, path: Any, x: Any) -> None:
        self.path, self.x = Path(path), x

    def save(self, fit: StochasticFit, *, ended: bool) -> None:
        """Replace the file; StorageError if it cannot be written, the previous one then stays."""
        state = fit.session.state
        kind, keys, position, has_gauss, gauss = fit.estimator._random_state.get_state()
        values = {
            "kind": KIND,
            "version": VERSION,
            "fingerprint": self._fingerprint(fit),
            "progress": {name: getattr(fit.estimator, name) for name in PROGRESS},
            "ended": ended,
            "has_best": fit.has_best,
            "steps": state.steps,
            "learning_rate": state.learning_rate,
            "schedule": None if state.schedule is None else state.schedule.state(),
            "random_state": [kind, position, has_gauss, gauss],
        }
        arrays = self._arrays(fit) | {"random_keys": keys, "order": fit.order}
        to_host = fit.session.network.backend.to_host
        write_tensors(self.path, {n: to_host(a) for n, a in arrays.items()}, values)

    def resume(self, fit: StochasticFit) -> bool:
        """Set fit and estimator to the file's state, if there is a file; whether training is over.

        Raises
        ------
        ModelFileError : the file is no checkpoint, is damaged, or is of another fit.
        """
        remove_leftovers(self.path)
        if not self.path.exists():
            return False
        arrays, values = read_tensors(self.path, KIND, VERSION)
        self._compare(values.get("fingerprint", {}), self._fingerprint(fit))
        estimator, state, backend = fit.estimator, fit.session.state, fit.session.network.backend
        targets = self._arrays(fit)
        for name, target in targets.items():
            require_array(self.path, arrays, name, target.shape, target.dtype)
        try:
            kind, position, has_gauss, gauss = values["random_state"]
            random_state = np.random.RandomState()
            random_state.set_state((kind, arrays["random_keys"], position, has_gauss, gauss))
            progress = {name: values["progress"][name] for name in PROGRESS}
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
        return bool(values["ended"])

    def _arrays(self, fit: StochasticFit) -> dict[str, Any]:
        state = fit.session.state
        arrays = {"parameters": fit.session.network.parameters}
        arrays |= {
            f"slot.{name}": slot
            for name, slot in zip(state.optimizer.formula.slots, state.slots, strict=True)
        }
        optional = {"random": fit.session.random, "best": fit.best}
        return arrays | {name: a for name, a in optional.items() if a is not None}

    def _fingerprint(self, fit: StochasticFit) -> dict[str, Any]:
        """What must be the same for the fit to go on; max_iter may grow."""
        e, network = fit.estimator, fit.session.network
        rows = np.unique(np.linspace(0, self.x.shape[0] - 1, 64).astype(int))
        sample = self.x[rows]
        content = sample.toarray() if hasattr(sample, "toarray") else np.ascontiguousarray(sample)
        return {
            "network": network.config(),
            "optimizer": fit.session.state.optimizer.config(),
            "rows": len(fit.order),
            "split": zlib.crc32(np.ascontiguousarray(fit.rows).tobytes()),
            "batch_rows": int(fit.plan.counts[0]),
            "data": zlib.crc32(content.tobytes()),
            "alpha": float(e.alpha),
            "learning_rate": str(e.learning_rate),
            "shuffle": bool(e.shuffle),
            "early_stopping": bool(e.early_stopping),
        }

    def _compare(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        changed = [name for name, value in ours.items() if theirs.get(name) != value]
        if changed:
            raise ModelFileError(
                f"{self.path} is a checkpoint of another fit: {', '.join(changed)} differ; remove "
                f"the file, or choose another checkpoint="
            )
