"""A trained network with what it takes to use it on raw data, and its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.data import Standardizer
from gpubackprop.errors import DataError, GpubackpropError, ModelFileError, OptionError
from gpubackprop.network import MLP
from gpubackprop.ops.checks import number
from gpubackprop.ops.display import html_table, names
from gpubackprop.tensorfile import read_tensors, require_array, write_tensors

Array = np.ndarray
KIND, VERSION = "model", 1


@dataclass
class Model:
    """A network, the standardisation of its inputs, and the names of columns and classes.

    Attributes
    ----------
    network : the trained `MLP`.
    standardizer : applied to raw inputs before the network, or None.
    feature_names : columns of the training data in order, or None.
    target_names : target columns, or None.
    classes : (K,) labels in the order of the output units, or None for regression.
    """

    network: MLP
    standardizer: Standardizer | None = None
    feature_names: Sequence[str] | None = None
    target_names: Sequence[str] | None = None
    classes: Array | None = None

    def _described(self) -> dict[str, Any]:
        classes = None if self.classes is None else np.asarray(self.classes).tolist()
        lists = {
            "features": self.feature_names, "targets": self.target_names, "classes": classes,
        }  # fmt: skip
        shown = {name: names(values) for name, values in lists.items() if values is not None}
        return ({"standardizer": self.standardizer} if self.standardizer else {}) | shown

    def __repr__(self) -> str:
        more = "".join(f"\n  {name}: {value}" for name, value in self._described().items())
        return f"Model of {self.network!r}{more}"

    def _repr_html_(self) -> str:
        rows = [[name, str(value)] for name, value in self._described().items()]
        return self.network._repr_html_() + (html_table("Model", ["", ""], rows) if rows else "")

    def predict(self, x: Any, *, batch_rows: int = 4096) -> Array:
        """yhat for raw inputs: (N, D_0) -> (N, K) probabilities or values, batch by batch.

        Inputs and results are NumPy arrays, whatever the network's device.
        """
        x = self.network.check_inputs(x)
        batch_rows = int(number(batch_rows, "batch_rows", 1))
        result = np.empty((len(x), self.network.widths[-1]), self.network.dtype)
        for start in range(0, len(x), batch_rows):
            batch = x[start : start + batch_rows]
            if self.standardizer is not None:
                batch = self.standardizer.transform(
                    batch, dtype=self.network.dtype, first_row=start
                )
            yhat = self.network.backend.to_host(self.network.predict(batch))
            result[start : start + batch_rows] = yhat
        return result

    def predict_labels(self, x: Any) -> Array:
        """The most probable class of each row: (N,) of the labels' dtype."""
        if self.classes is None:
            raise OptionError("this model has no classes, it was trained for numbers; use predict")
        return np.asarray(self.classes)[self.predict(x).argmax(1)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: layers.<l>.weight, .bias (l from 0), input.mean, .scale.

        Written to a temporary file, synced and renamed: an existing file is replaced whole or not
        at all.

        Raises
        ------
        StorageError : disk full, read-only folder, ...
        """
        network = self.network
        arrays: dict[str, Array] = {}
        for layer, (W, b) in enumerate(zip(network.W, network.b, strict=True)):
            arrays[f"layers.{layer}.weight"] = network.backend.to_host(W)
            arrays[f"layers.{layer}.bias"] = network.backend.to_host(b)
        if self.standardizer is not None:
            arrays["input.mean"] = self.standardizer.mean
            arrays["input.scale"] = self.standardizer.scale
        classes = None if self.classes is None else np.asarray(self.classes)
        values = {
            "kind": KIND,
            "version": VERSION,
            "network": network.config(),
            "feature_names": _names(self.feature_names),
            "target_names": _names(self.target_names),
            "classes": None if classes is None else classes.tolist(),
            "classes_dtype": None if classes is None else classes.dtype.str,
        }
        write_tensors(path, arrays, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Model:
        """Read a file that `save` wrote; `device` as for `MLP`, whatever it was trained on.

        Raises
        ------
        FileNotFoundError; ModelFileError naming the file and what is wrong with it.
        """
        arrays, values = read_tensors(path, KIND, VERSION)
        try:
            config = values["network"]
            layers = _read_layers(path, arrays, config["widths"], np.dtype(config["dtype"]))
            network = MLP(**config, initializer="zeros")
        except ModelFileError:
            raise
        except (GpubackpropError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: the architecture is not readable ({error})") from error
        for view, array in zip([*network.W, *network.b], layers, strict=True):
            view[...] = array
        return cls(
            network if device == "cpu" else network.copy(device),
            _read_standardizer(path, arrays, network),
            _read_names(path, values, "feature_names", network.widths[0]),
            _read_names(path, values, "target_names", None),
            _read_classes(path, values, network),
        )


def _read_layers(
    path: Any, arrays: dict[str, Array], widths: list[int], dtype: np.dtype
) -> list[Array]:
    """All weights, then all biases: before the network is built, so that it is no larger."""
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [
        require_array(path, arrays, f"layers.{layer}.weight", shape, dtype)
        for layer, shape in enumerate(shapes)
    ]
    biases = [
        require_array(path, arrays, f"layers.{layer}.bias", shape[:1], dtype)
        for layer, shape in enumerate(shapes)
    ]
    return weights + biases


def _names(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else [str(name) for name in names]


def _read_standardizer(path: Any, arrays: dict[str, Array], network: MLP) -> Standardizer | None:
    names = ("input.mean", "input.scale")
    if not any(name in arrays for name in names):
        return None
    shape, dtype = (network.widths[0],), np.dtype(np.float64)
    try:
        return Standardizer(*(require_array(path, arrays, name, shape, dtype) for name in names))
    except DataError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _read_names(path: Any, values: dict[str, Any], key: str, count: int | None) -> list[str] | None:
    names = values.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFileError(f"{path}: {key} is not a list of names")
    if count is not None and len(names) != count:
        raise ModelFileError(f"{path}: {len(names)} {key} but {count} input units")
    return names


def _read_classes(path: Any, values: dict[str, Any], network: MLP) -> Array | None:
    if values.get("classes") is None:
        return None
    try:
        classes = np.array(values["classes"], dtype=values["classes_dtype"])
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ModelFileError(f"{path}: the classes are not readable ({error!r})") from error
    if classes.ndim != 1 or (network.output == "softmax" and len(classes) != network.widths[-1]):
        raise ModelFileError(
            f"{path}: classes has shape {classes.shape} but there are {network.widths[-1]} "
            f"output units"
        )
    return classes
