"""``gpubackprop export``: write a trained model as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpubackprop import Model
from gpubackprop.cli.common import Say
from gpubackprop.cli.outputs import add_overwrite_option, claim_file, refuse_inputs
from gpubackprop.onnx.graph import FLOATS, OPSET, onnx_package

_EPILOG = """\
examples:
  gpubackprop export runs/iris iris.onnx
  gpubackprop export runs/iris/model.safetensors iris.onnx --input-dtype float64

The file takes raw inputs: what was done to the columns is inside. It runs in onnxruntime, in
browsers, on phones and in databases. Names of columns and classes are in its metadata.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "gpubackprop export MODEL FILE [options]"
    parser.description = (
        "Write a trained model, its preparation of the columns inside, as an ONNX file."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="model.safetensors, or the directory that holds it")
    add("output", metavar="FILE", help="the ONNX file to write")
    add(
        "--input-dtype",
        choices=FLOATS,
        help="dtype of the inputs (default: the network's, or float64 if float32 would blur a "
        "column)",
    )
    add_overwrite_option(parser)
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--quiet", action="store_true", help="print nothing")


def run(args: argparse.Namespace) -> int:
    path = Path(args.model)
    path = path / "model.safetensors" if path.is_dir() else path
    model = Model.load(path)
    refuse_inputs(args, args.output, {"MODEL": path})
    claim_file(args, args.output, "ONNX file of gpubackprop", is_own)
    graph = model.to_onnx(args.output, input_dtype=args.input_dtype).graph
    inputs, outputs = (described(values) for values in (graph.input, graph.output))
    say = Say(args.json, args.quiet)
    say.line(f"{args.output}: ONNX, opset {OPSET}")
    for side, values in (("in", inputs), ("out", outputs)):
        for name, value in values.items():
            say.line(f"  {side:<4}{name}: {value['dtype']} ({', '.join(value['shape'])})")
    if model.feature_names and "x" in inputs:
        say.line(f"  columns of x: {', '.join(model.feature_names)}")
    say.object({"output": args.output, "opset": OPSET, "inputs": inputs, "outputs": outputs})
    return 0


def described(values: Any) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of a graph's inputs or outputs, by their names."""
    onnx = onnx_package()
    return {
        value.name: {
            "dtype": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
            "shape": [d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim],
        }
        for value in values
    }


def is_own(file: Path) -> bool:
    """Return whether this is an ONNX file that was written here."""
    onnx = onnx_package()
    try:
        return bool(onnx.load_model_from_string(file.read_bytes()).producer_name == "gpubackprop")
    except Exception:  # protobuf has errors of its own, which derive from nothing else
        return False
