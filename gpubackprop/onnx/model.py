"""A `Model` as an ONNX graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gpubackprop.data import Standardizer, TablePreprocessor
from gpubackprop.ensemble import Ensemble, members_of
from gpubackprop.errors import DataError
from gpubackprop.network import MLP
from gpubackprop.onnx.formulas import as_labels, forward, indicators, labels
from gpubackprop.onnx.graph import Nodes, OnnxGraph, check_float, write
from gpubackprop.onnx.table import table_inputs

Array = np.ndarray


class Parts(Protocol):
    """What is exported: the parts of a `Model`."""

    network: MLP | Ensemble
    preprocessor: TablePreprocessor | None
    standardizer: Standardizer | None
    feature_names: Any
    target_names: Any
    classes: Array | None


def input_dtype_of(model: Parts) -> np.dtype:
    """Return the dtype in which raw inputs are told apart: float32, or float64 if it blurs them.

    It blurs a column whose neighbouring float32 numbers lie further apart than a thousandth of its
    scale, such as seconds since 1970. Dates are float64 in any case.
    """
    standardizer, prepared, dtype = model.standardizer, model.preprocessor, model.network.dtype
    if standardizer is None or dtype == np.float64:
        return dtype
    mean, scale = standardizer.mean, standardizer.scale
    with np.errstate(over="ignore", invalid="ignore"):
        fine = np.spacing(np.abs(mean).astype(np.float32)) <= scale / 1000
    if prepared is not None:
        dates = [plan.kind in ("date", "time") for plan in prepared.columns for _ in plan.outputs]
        fine |= dates
    return np.dtype(np.float32 if fine.all() else np.float64)


def export(model: Parts, path: str | os.PathLike[str] | None, input_dtype: str | None) -> Any:
    """Return the onnx.ModelProto of a checked model, written to `path` unless that is None."""
    network, standardizer, classes = model.network, model.standardizer, model.classes
    wanted = input_dtype or input_dtype_of(model).name
    dtype = check_float(wanted, "input_dtype")
    members = members_of(network)
    to_host = network.backend.to_host
    if not all(np.isfinite(to_host(member.parameters)).all() for member in members):
        raise DataError("the weights hold NaN or infinity; they come from a diverged training")
    graph = OnnxGraph(network.dtype)
    if model.preprocessor is not None:
        x = table_inputs(graph, model.preprocessor, dtype)
    else:
        x = graph.input("x", dtype, ["N", network.widths[0]])
    x = standardized(graph, x, standardizer) if standardizer else graph.cast(x, graph.dtype)
    yhat = mean_of([_forward(graph, x, member) for member in members], graph)
    units = network.widths[-1]
    if classes is not None:
        known = as_labels(np.asarray(classes))
        label = labels(graph, yhat, known, one_unit=len(known) > units)
        graph.output(label, "label", known.dtype, ["N"])
    elif network.output == "logistic":
        graph.output(indicators(graph, yhat), "label", np.int64, ["N", units])
    name = "probabilities" if network.output in ("softmax", "logistic") else "predictions"
    graph.output(yhat, name, graph.dtype, ["N", units])
    values = {
        "feature_names": model.feature_names,
        "target_names": model.target_names,
        "classes": None if classes is None else as_labels(np.asarray(classes)).tolist(),
        "network": network.config(),
    }
    if isinstance(network, Ensemble):
        values["members"] = len(members)
    if model.preprocessor is not None:
        values["columns"] = model.preprocessor.report()
    widths = "-".join(map(str, network.widths))
    what = f"A feed-forward network {widths}"
    if isinstance(network, Ensemble):
        what = f"The mean of {len(members)} feed-forward networks {widths}"
    return write(graph.model(f"{what} of gpubackprop", values), path)


def _forward(graph: OnnxGraph, x: str, network: MLP) -> str:
    """Add the nodes of one network; return the name of yhat."""
    to_host = network.backend.to_host
    W, b = ([to_host(array) for array in arrays] for arrays in (network.W, network.b))
    return forward(graph, x, W, b, network.activations, network.output)


def mean_of(outputs: Sequence[str], n: Nodes) -> str:
    """Add the nodes of the mean of several outputs; return its name."""
    summed, *others = outputs
    if not others:
        return summed
    for other in others:  # onnxruntime has Mean and Sum of float32 alone
        summed = n.op("Add", summed, other)
    return n.op("Div", summed, n.number(float(len(outputs))))


def standardized(graph: OnnxGraph, x: str, standardizer: Standardizer) -> str:
    """Add (x - mean) / scale in float64, rounded once, as `Standardizer.transform` computes it."""
    wide = graph.cast(x, np.float64)
    centred = graph.op("Sub", wide, graph.constant(standardizer.mean, "mean"))
    scaled = graph.op("Div", centred, graph.constant(standardizer.scale, "scale"))
    return graph.cast(scaled, graph.dtype)
