"""The estimators within a pipeline that skl2onnx exports, as scikit-learn's own are.

skl2onnx looks a class up in its tables, and has no other way in: `register` writes there. It is
called when a program imports skl2onnx, so that neither package waits for the other and a program
for scikit-learn's estimators works unchanged.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
from sklearn.base import is_classifier

from gpubackprop._optional import require
from gpubackprop.onnx.graph import Nodes, onnx_package
from gpubackprop.sklearn.onnx_export import emit, label_type, n_columns

Array = np.ndarray
PACKAGE = "skl2onnx"
# Those of scikit-learn's own classifier.
OPTIONS = {
    "zipmap": [True, False, "columns"],
    "output_class_labels": [False, True],
    "nocl": [True, False],
}


def register(*estimators: type) -> None:
    """Make skl2onnx know these classes."""
    update = require(PACKAGE, "test", "export a pipeline").update_registered_converter
    for estimator in estimators:
        options = OPTIONS if is_classifier(estimator()) else None
        update(estimator, f"Gpubackprop{estimator.__name__}", _set_types, _convert, options=options)


def register_when_imported(*estimators: type) -> None:
    """Call `register` now if skl2onnx is imported already, else as soon as it is."""
    if PACKAGE in sys.modules:
        _register_or_warn(estimators)
    else:
        sys.meta_path.insert(0, _Finder(estimators))


def _register_or_warn(estimators: Sequence[type]) -> None:
    try:
        register(*estimators)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        warnings.warn(
            f"this version of skl2onnx does not take gpubackprop's estimators ({error}); their own "
            "to_onnx exports them",
            stacklevel=2,
        )


class _Finder(importlib.abc.MetaPathFinder):
    """Finds skl2onnx as Python does, until it is imported."""

    def __init__(self, estimators: Sequence[type]) -> None:
        self.estimators = estimators

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module by its own loader, and registers the estimators then."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _register_or_warn(self.finder.estimators)


class ContainerNodes(Nodes):
    """Nodes of a graph that skl2onnx builds.

    Parameters
    ----------
    scope : skl2onnx Scope
        It gives names.
    container : skl2onnx ModelComponentContainer
        It takes the nodes.
    dtype : dtype
        The float type that is computed in.
    """

    def __init__(self, scope: Any, container: Any, dtype: np.dtype) -> None:
        super().__init__(dtype)
        self._scope, self._container = scope, container

    def fresh(self, name: str) -> str:
        """Return a name that is free in the whole graph."""
        return str(self._scope.get_unique_variable_name(name))

    def constant(self, values: Array, name: str = "constant") -> str:
        """Add an array; return the name that it has got."""
        name = self.fresh(name)
        tensor = onnx_package().numpy_helper.from_array(np.asarray(values, order="C"), name)
        numbers = [*tensor.string_data] if values.dtype.kind == "O" else np.ravel(values)
        self._container.add_initializer(name, tensor.data_type, [*values.shape], numbers)
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node whose result is called `output`."""
        name = self._scope.get_unique_operator_name(operator)
        self._container.add_node(operator, [*inputs], [output], name=name, **attributes)


def _float_type(inputs: Sequence[Any]) -> np.dtype:
    """Return float64 if one of skl2onnx's inputs has it, else float32."""
    double = any(type(value.type).__name__.startswith("Double") for value in inputs)
    return np.dtype(np.float64 if double else np.float32)


def _set_types(operator: Any) -> None:
    """Set the types of the outputs of skl2onnx's `operator`."""
    estimator = operator.raw_operator
    types: Any = require(f"{PACKAGE}.common.data_types", "test", "export a pipeline")
    rows, units = operator.inputs[0].get_first_dimension(), n_columns(estimator)
    if is_classifier(estimator):
        kind, several = label_type(estimator)
        label = types.StringTensorType if kind.kind == "O" else types.Int64TensorType
        operator.outputs[0].type = label([rows, units] if several else [rows])
    double = _float_type(operator.inputs) == np.float64
    floats = types.DoubleTensorType if double else types.FloatTensorType
    operator.outputs[-1].type = floats([rows, units])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the nodes of skl2onnx's `operator`."""
    nodes = ContainerNodes(scope, container, _float_type(operator.inputs))
    parts = [nodes.cast(value.full_name, nodes.dtype) for value in operator.inputs]
    x = parts[0] if len(parts) == 1 else nodes.op("Concat", *parts, axis=1)
    label, yhat = emit(nodes, x, operator.raw_operator)
    nodes.rename(yhat, operator.outputs[-1].full_name)
    if label is not None:
        kind, _ = label_type(operator.raw_operator)
        if kind.kind in "bf":  # skl2onnx has integers and text; scikit-learn's floats are whole
            label = nodes.cast(label, np.int64)
        nodes.rename(label, operator.outputs[0].full_name)
