"""The nodes of an ONNX graph, and the file that holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop._optional import require
from gpubackprop.errors import OptionError
from gpubackprop.tensorfile import write_atomically

Array = np.ndarray
# The oldest that has all operators here, so that the files run in runtimes from 2022 on.
OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
_MOST_BYTES = 2**31 - 1  # of a protobuf message
FLOATS = ("float32", "float64")


def onnx_package() -> Any:
    """Return the imported package; MissingDependencyError says how to install it."""
    return require("onnx", "onnx", "export a model as an ONNX file")


def check_float(dtype: Any, what: str) -> np.dtype:
    """Return `dtype` as a NumPy dtype; OptionError unless it is float32 or float64."""
    if str(dtype) not in FLOATS:
        raise OptionError(f"{what} is {dtype!r} but must be one of {', '.join(FLOATS)}")
    return np.dtype(str(dtype))


class Nodes:
    """What a formula writes itself with: constants and nodes, whose results have names.

    Parameters
    ----------
    dtype : dtype
        The float type that is computed in.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)

    def constant(self, values: Array, name: str = "constant") -> str:
        """Add an array; return the name that it has got."""
        raise NotImplementedError

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node whose result is called `output`."""
        raise NotImplementedError

    def fresh(self, name: str) -> str:
        """Return `name`, with a number behind it if it is taken."""
        raise NotImplementedError

    def op(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its result."""
        result = self.fresh(name or operator.lower())
        self.add(operator, inputs, result, **attributes)
        return result

    def number(self, value: float) -> str:
        """Add a scalar of the float type."""
        return self.constant(np.array(value, self.dtype))

    def cast(self, value: str, dtype: Any, name: str = "") -> str:
        """Return `value` in another type."""
        return self.op("Cast", value, name=name or "cast", to=element_type(dtype))

    def rename(self, value: str, name: str) -> None:
        """Give a result the name that an output of the graph has."""
        self.add("Identity", [value], name)


def element_type(dtype: Any) -> int:
    """Return ONNX's number of a NumPy dtype; text and objects are strings."""
    kind = np.dtype(dtype)
    if kind.kind in "OUST":
        return int(onnx_package().TensorProto.STRING)
    return int(onnx_package().helper.np_dtype_to_tensor_dtype(kind))


class OnnxGraph(Nodes):
    """A graph of its own, which `model` makes a file of.

    Parameters
    ----------
    dtype : dtype
        The float type that is computed in.
    """

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__(dtype)
        self._onnx = onnx_package()
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._infos: dict[str, list[Any]] = {"inputs": [], "outputs": []}
        self._names: set[str] = set()

    def fresh(self, name: str) -> str:
        """Return `name`, with a number behind it if it is taken."""
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free

    def constant(self, values: Array, name: str = "constant") -> str:
        """Add an array; return the name that it has got."""
        name = self.fresh(name)
        values = np.asarray(values, order="C")
        self._constants.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node whose result is called `output`."""
        node = self._onnx.helper.make_node(operator, [*inputs], [output], output, **attributes)
        self._nodes.append(node)

    def input(self, name: str, dtype: Any, shape: Sequence[str | int]) -> str:
        """Declare an input of the graph."""
        return self._declare("inputs", name, dtype, shape)

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[str | int]) -> None:
        """Declare `value` as an output that is called `name`."""
        self.rename(value, self._declare("outputs", name, dtype, shape))

    def _declare(self, side: str, name: str, dtype: Any, shape: Sequence[str | int]) -> str:
        name = self.fresh(name)
        make = self._onnx.helper.make_tensor_value_info
        self._infos[side].append(make(name, element_type(dtype), [*shape]))
        return name

    def model(self, description: str, values: Mapping[str, Any]) -> Any:
        """Return the checked onnx.ModelProto; `values` become its metadata, as JSON.

        Raises
        ------
        OptionError
            It is larger than such a file can be.
        """
        helper = self._onnx.helper
        size = sum(constant.ByteSize() for constant in self._constants)
        if size > _MOST_BYTES - 2**20:
            raise OptionError(
                f"the parameters take {size:,} bytes but an ONNX file holds at most 2 GiB; export "
                "a smaller network, or one of float32"
            )
        graph = helper.make_graph(
            self._nodes, "gpubackprop", self._infos["inputs"], self._infos["outputs"],
            self._constants,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain for node in self._nodes):
            opsets.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gpubackprop",
            doc_string=description,
        )  # fmt: skip
        helper.set_model_props(
            model, {key: json.dumps(value, default=str) for key, value in values.items()}
        )
        self._onnx.checker.check_model(model)
        return model


def write(model: Any, path: str | os.PathLike[str] | None) -> Any:
    """Write an onnx.ModelProto to `path`, whole or not at all, unless that is None; return it."""
    if path is not None:
        write_atomically(Path(path), model.SerializeToString())
    return model
