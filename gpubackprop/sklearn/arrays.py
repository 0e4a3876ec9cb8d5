"""Arrays in and out: those of NumPy, SciPy (sparse), CuPy and PyTorch, and data frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import get_config
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import column_or_1d
from sklearn.utils.validation import validate_data

from gpubackprop import backends
from gpubackprop._optional import require
from gpubackprop.backends import Backend
from gpubackprop.errors import DtypeError, ShapeError
from gpubackprop.sklearn.parameters import warn

Array = Any
DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def device_of(x: Any) -> str:
    """Return where `x` lies: "cpu", or "cuda:N" for an array or tensor of a GPU."""
    if type(x) is np.ndarray:
        return "cpu"
    if is_tensor(x):
        return f"cuda:{x.device.index or 0}" if x.device.type == "cuda" else "cpu"
    if hasattr(type(x), "__dlpack_device__"):  # a data frame may have a column of that name
        try:
            kind, index = x.__dlpack_device__()
        except (BufferError, RuntimeError, ValueError):  # JAX's array on several devices
            return "cpu"
        return f"cuda:{index}" if kind in DLPACK_CUDA else "cpu"
    if hasattr(type(x), "__cuda_array_interface__"):
        return f"cuda:{getattr(getattr(x, 'device', None), 'id', 0)}"
    return "cpu"


def on_gpu(x: Any) -> bool:
    return device_of(x) != "cpu"


def is_tensor(x: Any) -> bool:
    """Return whether `x` is a tensor of PyTorch, or of a class derived from it."""
    return any((c.__module__, c.__name__) == ("torch", "Tensor") for c in type(x).__mro__)


def to_host(x: Any) -> Any:
    """Return a tensor or a GPU's array as a NumPy array; anything else as it is."""
    if type(x) is np.ndarray:
        return x
    if is_tensor(x):
        return _memory_of(x.detach().cpu())
    return x.get() if on_gpu(x) and hasattr(x, "get") else x


def _memory_of(tensor: Any) -> Any:
    """Return a CPU tensor as NumPy sees it, by DLPack.

    `Tensor.numpy` would forbid that the tensor's storage is ever resized. It is called only if
    NumPy has no such array, for PyTorch's error.
    """
    try:
        return np.from_dlpack(tensor)
    except Exception:  # each kind of tensor raises another one
        return tensor.numpy()


def like(result: Array, x: Any) -> Array:
    """Return `result` in the form in which scikit-learn would return it for `x`.

    If `x` is a GPU's array or tensor, the result is one of its kind on its device. If `x` lies on
    the CPU, the result is a NumPy array, or a tensor if scikit-learn's ``array_api_dispatch`` is
    on. Class names stay on the host.
    """
    if type(x) is np.ndarray or result.dtype.kind not in "fiub":
        return result
    if on_gpu(x) and isinstance(result, np.ndarray):
        result = backend_of(x).asarray(result)
    if not is_tensor(x) or not (on_gpu(x) or get_config()["array_api_dispatch"]):
        return result
    torch: Any = require("torch", "torch", "return a tensor")
    return torch.from_numpy(result) if isinstance(result, np.ndarray) else torch.from_dlpack(result)


def backend_of(x: Any) -> Backend:
    """The backend of the GPU where `x` lies."""
    return backends.get(device_of(x))


def validate(estimator: Any, X: Any, y: Any, *, reset: bool, **checks: Any) -> tuple[Any, Any]:
    """X as float32 or float64 (NumPy, CSR, or of its GPU) and y on the host, by scikit-learn's
    checks.

    `reset`: remember the features of X; else compare them with those of the fit.
    """
    precision, y = estimator.precision, to_host(y)
    plain = type(y) is np.ndarray and y.dtype.kind in "iu" and y.ndim == 1
    if plain and not checks and is_valid(estimator, X, reset=reset) and len(y) == len(X):
        estimator.n_features_in_ = X.shape[1]
        return X, y
    X = X if on_gpu(X) else to_host(X)
    dtype = (np.float64, np.float32) if precision is None else np.dtype(precision)
    if on_gpu(X):
        X = validate_on_gpu(estimator, X, reset=reset)
        stand_in = np.broadcast_to(np.float32(0), X.shape)
        return X, validate_data(estimator, stand_in, y, multi_output=True, reset=False, **checks)[1]
    X, y = validate_data(
        estimator, X, y, accept_sparse=["csr", "csc"], multi_output=True, dtype=dtype, reset=reset,
        **checks,
    )  # fmt: skip
    return X.tocsr() if sparse.issparse(X) else X, y


def is_valid(estimator: Any, X: Any, *, reset: bool = False) -> bool:
    """Return whether `validate_data` would give X back as it is.

    X must then be finite rows of floats, and unless `reset` with as many columns as in the fit.
    False only means that scikit-learn has to be asked.
    """
    if type(X) is not np.ndarray or X.ndim != 2 or X.dtype not in (np.float64, np.float32):
        return False
    if getattr(estimator, "feature_names_in_", None) is not None or not X.size:
        return False
    if not reset and X.shape[1] != getattr(estimator, "n_features_in_", None):
        return False
    if estimator.precision is not None and X.dtype != estimator.precision:
        return False
    with np.errstate(all="ignore"):  # an overflow here is no reason to warn
        return math.isfinite(np.add.reduce(X, None))


def column_raveled(y: np.ndarray) -> np.ndarray:
    """Return y, with (N, 1) as (N,) after scikit-learn's warning."""
    if y.ndim != 2 or y.shape[1] != 1:
        return y
    warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y "
        "to (n_samples, ), for example using ravel().",
        DataConversionWarning,
    )
    return column_or_1d(y)


def with_columns(y: Any, columns: int) -> Any:
    """Return y of validation_data; raise ShapeError unless it has as many columns as in the fit."""
    found = 1 if y.ndim == 1 else y.shape[1]
    if found != columns:
        raise ShapeError(
            f"y of validation_data has shape {y.shape} but the y that is learned has {columns} "
            f"column{'s' * (columns > 1)}"
        )
    return y


def validate_on_gpu(estimator: Any, x: Any, *, reset: bool) -> Array:
    """Check an array or tensor of a GPU there, as scikit-learn checks NumPy's.

    It must be 2-D and finite, with the number of columns of the fit. It is returned in float32 or
    float64, or in the estimator's precision. The call waits for the device.
    """
    x = backend_of(x).asarray(x.detach() if is_tensor(x) else x)
    if x.dtype.kind not in "fiub":
        raise DtypeError(f"X has dtype {x.dtype} but must be real numbers")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64 if x.dtype.kind in "iub" else np.float32)
    if estimator.precision is not None:
        x = x.astype(estimator.precision, copy=False)
    if x.ndim != 2 or not x.size:
        raise ShapeError(f"X has shape {x.shape} but must be (N, D) with N and D at least 1")
    if reset:
        estimator.n_features_in_ = x.shape[1]
    elif x.shape[1] != estimator.n_features_in_:
        raise ShapeError(
            f"X has {x.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    if not backend_of(x).all_finite(x.reshape(-1)):
        raise ValueError("Input X contains NaN or infinity.")
    return x


def largest(y: np.ndarray) -> float:
    """Return the largest absolute value of real numbers, in float64."""
    with np.errstate(over="ignore"):
        return float(np.abs(y.astype(np.float64, copy=False)).max(initial=0.0))


def take_rows(backend: Backend, array: Any, rows: np.ndarray) -> Any:
    """Return array[rows] on the device of `backend`."""
    if not backend.asynchronous:
        return array[rows]
    out = backend.empty((len(rows), *array.shape[1:]), array.dtype)
    backend.gather_rows(array, backend.asarray(rows, np.int64), out)
    return out


def batch_rows(batch_size: Any, rows: int) -> int:
    """Return the rows of a batch, from the parameter `batch_size` and the rows to learn from."""
    if batch_size == "auto":
        return min(200, rows)
    if batch_size == "full":
        return rows
    if batch_size > rows:
        warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
    return int(np.clip(batch_size, 1, rows))
