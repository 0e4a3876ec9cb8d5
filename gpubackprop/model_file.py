"""The file of a `Model`: its parts to a safetensors file and back.

`Model` itself checks that the parts fit each other, for a file as for a caller.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.data import Standardizer, TablePreprocessor
from gpubackprop.data.classes import classes_from_values, classes_to_values
from gpubackprop.ensemble import Ensemble, members_of
from gpubackprop.errors import DataError, GpubackpropError, ModelFileError, ShapeError
from gpubackprop.network import MLP
from gpubackprop.tensorfile import read_tensors, require_array, write_tensors

Array = np.ndarray
# 2: with a preprocessor; 3: with several networks; a file without either is of version 1
KIND, VERSION = "model", 3


def write(
    path: str | os.PathLike[str],
    network: MLP | Ensemble,
    standardizer: Standardizer | None,
    classes: Array | None,
    preprocessor: TablePreprocessor | None = None,
    **names: Sequence[str] | None,
) -> None:
    """Write the checked parts of a model; `names` are its "feature_names" and "target_names".

    A preprocessor's standardizer is the model's.
    """
    arrays: dict[str, Array] = {}
    members = members_of(network)
    for place, member in enumerate(members):
        before = f"members.{place}." if isinstance(network, Ensemble) else ""
        for layer, (W, b) in enumerate(zip(member.W, member.b, strict=True)):
            arrays[f"{before}layers.{layer}.weight"] = network.backend.to_host(W)
            arrays[f"{before}layers.{layer}.bias"] = network.backend.to_host(b)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(
                f"{name} holds NaN or infinity, so the model is not written to {path}; it comes "
                "from a diverged training: train with a lower learning rate"
            )
    if standardizer is not None:
        arrays["input.mean"] = standardizer.mean
        arrays["input.scale"] = standardizer.scale
    labels, dtype = (None, None) if classes is None else classes_to_values(classes)
    values = {
        "kind": KIND,
        "version": 1 if preprocessor is None else 2,
        "network": network.config(),
        **names,
        "classes": labels,
        "classes_dtype": dtype,
    }
    if isinstance(network, Ensemble):
        values |= {"version": VERSION, "members": len(members)}
    if preprocessor is not None:
        values["preprocessor"] = preprocessor.state()
    write_tensors(path, arrays, values)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the parts of a model, by the names that `Model` has for them, on the CPU."""
    arrays, values = read_tensors(path, KIND, VERSION)
    network = _read_network(path, arrays, values)
    standardizer = _read_standardizer(path, arrays, network)
    return {
        "network": network,
        "standardizer": standardizer,
        "preprocessor": _read_preprocessor(path, values, standardizer),
        "feature_names": _read_names(path, values, "feature_names"),
        "target_names": _read_names(path, values, "target_names"),
        "classes": _read_classes(path, values),
    }


def _read_network(path: Any, arrays: dict[str, Array], values: dict[str, Any]) -> MLP | Ensemble:
    """Return the network, or the ensemble."""
    count = values.get("members")
    if count is None:
        return _read_member(path, arrays, values)
    if type(count) is not int or not 0 < count <= len(arrays):
        raise ModelFileError(f"{path}: members is {count!r}, which is no number of its networks")
    return Ensemble(
        [_read_member(path, arrays, values, f"members.{place}.") for place in range(count)]
    )


def _read_member(
    path: Any, arrays: dict[str, Array], values: dict[str, Any], before: str = ""
) -> MLP:
    """Return the network whose tensors have `before` before their names."""
    try:
        config = values["network"]
        dtype = np.dtype(config["dtype"])
        layers = _read_layers(path, arrays, config["widths"], dtype, before)
        network = MLP(**config, initializer="zeros")
    except ModelFileError:
        raise
    except (GpubackpropError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the architecture is not readable ({error})") from error
    for view, array in zip([*network.W, *network.b], layers, strict=True):
        view[...] = array
    return network


def _read_layers(
    path: Any, arrays: dict[str, Array], widths: list[int], dtype: np.dtype, before: str
) -> list[Array]:
    """Return all weights, then all biases.

    They are read before the network is built, so that a wrong file cannot ask for a huge network.
    """
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [
        require_array(path, arrays, f"{before}layers.{layer}.weight", shape, dtype)
        for layer, shape in enumerate(shapes)
    ]
    biases = [
        require_array(path, arrays, f"{before}layers.{layer}.bias", shape[:1], dtype)
        for layer, shape in enumerate(shapes)
    ]
    return weights + biases


def _read_standardizer(
    path: Any, arrays: dict[str, Array], network: MLP | Ensemble
) -> Standardizer | None:
    names = ("input.mean", "input.scale")
    if not any(name in arrays for name in names):
        return None
    shape, dtype = (network.widths[0],), np.dtype(np.float64)
    try:
        mean, scale = (require_array(path, arrays, name, shape, dtype) for name in names)
        return Standardizer(mean, scale)
    except DataError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _read_preprocessor(
    path: Any, values: dict[str, Any], standardizer: Standardizer | None
) -> TablePreprocessor | None:
    if values.get("preprocessor") is None:
        return None
    try:
        return TablePreprocessor.from_state(values["preprocessor"], standardizer)
    except (DataError, ShapeError) as error:
        raise ModelFileError(f"{path}: {error}") from error


def _read_names(path: Any, values: dict[str, Any], key: str) -> list[str] | None:
    names = values.get(key)
    if names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        return names
    raise ModelFileError(f"{path}: {key} is not a list of names")


def _read_classes(path: Any, values: dict[str, Any]) -> Array | None:
    if values.get("classes") is None:
        return None
    try:
        return classes_from_values(values["classes"], values["classes_dtype"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ModelFileError(f"{path}: the classes are not readable ({error!r})") from error
