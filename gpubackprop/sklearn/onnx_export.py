"""The estimators as ONNX graphs; `onnx_pipeline` has them within a pipeline."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from gpubackprop.errors import DataError
from gpubackprop.onnx.formulas import as_labels, forward, indicators, labels
from gpubackprop.onnx.graph import Nodes, OnnxGraph, check_float, write
from gpubackprop.onnx.model import mean_of
from gpubackprop.ops.checks import no_own_methods
from gpubackprop.sklearn.members import members_of
from gpubackprop.sklearn.objective import Objective
from gpubackprop.sklearn.prediction import hidden_activations
from gpubackprop.sklearn.stored import arrays_to_predict

Array = np.ndarray
LabelType = tuple[np.dtype, bool]  # dtype of the labels, and whether there is a column for each


class OnnxExport:
    """The exports of an estimator; a base of `BaseMLP`."""

    def to_onnx(
        self, path: str | os.PathLike[str] | None = None, *, input_dtype: str | None = None
    ) -> Any:
        """Export the fitted estimator as an ONNX graph.

        Its input is "x" (N, n_features). A classifier has the outputs "label", the result of
        `predict` (int64, bool, double, or text), and "probabilities" (N, n_classes). A regressor
        has "predictions" (N, n_outputs). A whole pipeline is exported by
        ``skl2onnx.to_onnx(pipeline, X[:1])``, which knows these estimators.

        Parameters
        ----------
        path : path or None
            The file to write, whole or not at all; None writes none.
        input_dtype : {"float32", "float64"} or None
            Dtype of the inputs, in which everything is computed; None is that of `coefs_`.

        Returns
        -------
        onnx.ModelProto
            The checked graph, of opset 17.

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        MissingDependencyError
            The package onnx is not installed.
        OptionError
            input_dtype is another one, or the file would be larger than 2 GiB, or the estimator is
            of a class with a `predict` or `predict_proba` of its own.
        DataError
            The weights hold NaN or infinity.
        StorageError
            The disk is full, the folder is read-only, or the like.
        """
        check_is_fitted(self)
        refuse_own_predictions(self)
        estimator: Any = self
        columns, wanted = estimator.n_features_in_, input_dtype or estimator.precision
        dtype = check_float(wanted or _float_of(estimator), "input_dtype")
        graph = OnnxGraph(dtype)
        label, yhat = emit(graph, graph.input("x", dtype, ["N", columns]), estimator)
        units = n_columns(estimator)
        if label is not None:
            kind, several = label_type(estimator)
            graph.output(label, "label", kind, ["N", units] if several else ["N"])
        name = "predictions" if label is None else "probabilities"
        graph.output(yhat, name, dtype, ["N", units])
        names = getattr(self, "feature_names_in_", None)
        values = {"feature_names": None if names is None else [*map(str, names)]}
        return write(graph.model(f"{type(self).__name__} of gpubackprop.sklearn", values), path)


def refuse_own_predictions(estimator: Any) -> None:
    """Raise OptionError if the estimator's class predicts in a way of its own."""
    no_own_methods(estimator, ("predict", "predict_proba"), "a graph would not have")


def _float_of(estimator: Any) -> str:
    networks = members_of(estimator) or [estimator]
    dtype = np.result_type(*(np.asarray(coef).dtype for e in networks for coef in e.coefs_))
    return "float64" if dtype == np.float64 else "float32"


def n_columns(estimator: Any) -> int:
    """Return the number of columns of predict_proba, or of the regressor's predictions."""
    units = int(estimator.n_outputs_)
    return 2 if is_classifier(estimator) and units == 1 else units


def label_type(estimator: Any) -> LabelType:
    """Return the dtype of the labels, and whether they are indicators, a column for each."""
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        return np.dtype(np.int64), True
    return as_labels(estimator.classes_).dtype, False


def _forward(n: Nodes, x: str, estimator: Any) -> str:
    """Add the nodes of one network; return the name of yhat."""
    coefs, intercepts = arrays_to_predict(estimator, estimator.n_features_in_)
    if not all(np.isfinite(array).all() for array in (*coefs, *intercepts)):
        raise DataError("coefs_ or intercepts_ hold NaN or infinity; fit the estimator again")
    kind = Objective(estimator.out_activation_, len(intercepts[-1])).output
    hidden = hidden_activations(estimator.activation, len(coefs) - 1)
    return forward(n, x, [coef.T for coef in coefs], intercepts, hidden, kind)


def emit(n: Nodes, x: str, estimator: Any) -> tuple[str | None, str]:
    """Add the estimator's nodes; return the names of labels (None of a regressor) and of yhat."""
    members = members_of(estimator)
    if members is None:
        yhat = _forward(n, x, estimator)
    else:
        yhat = mean_of([_forward(n, x, member) for member in members], n)
    units = int(estimator.n_outputs_)
    if not is_classifier(estimator):
        return None, yhat
    both = yhat
    if units == 1:
        both = n.op("Concat", n.op("Sub", n.number(1.0), yhat), yhat, axis=1)
    if label_type(estimator)[1]:
        return indicators(n, both if units == 1 else yhat), both
    known = as_labels(estimator.classes_)
    if units == 1 and len(known) == 1:  # all labels of the fit were the same
        known = np.concatenate([known, known])
    return labels(n, yhat, known, one_unit=units == 1), both
