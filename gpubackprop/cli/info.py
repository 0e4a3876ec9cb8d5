"""``gpubackprop info``: what this machine offers to the library; or what a model is."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import Ensemble, Model, backends, dtypes
from gpubackprop.backends import devices
from gpubackprop.backends.devices import CudaLibrary, CupyReport, DeviceReport
from gpubackprop.backends.native import HostPath, host_path
from gpubackprop.backends.numpy import get_num_threads
from gpubackprop.backends.precision import automatic, has_tf32
from gpubackprop.cli import info_licenses, info_resident, info_scaling
from gpubackprop.cli.common import Say, blas_name, count, versions
from gpubackprop.data.classes import as_text
from gpubackprop.ensemble import members_of
from gpubackprop.errors import GpubackpropError

PRECISIONS = (*dtypes.COMPUTE, "tf32", *dtypes.SIXTEEN_BIT)
_EPILOG = """\
examples:
  gpubackprop info
  gpubackprop info --json
  gpubackprop info runs/iris
      what a model wants and predicts
  gpubackprop info --scaling 784-512-512-10 --batch 4096 --bandwidth 25
      what several ranks would move and gain, estimated
  gpubackprop info --resident 64-128-10 --batch 200
      whether an epoch of this network is one launch on a GPU, planned
  gpubackprop info --licenses --json
      the licences of what is installed, as an SPDX document
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.usage = (
        "gpubackprop info [MODEL] [--json] [--licenses] [--scaling|--resident WIDTHS [options]]"
    )
    parser.description = (
        "Show the device that --device auto means here, what computes on the CPU and why, the "
        "NVIDIA driver, the CUDA libraries found, what is missing and how to get it, BLAS, threads "
        "and versions. With MODEL: its network, its columns and what is done with each, its "
        "classes."
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="model.safetensors, or the directory that has it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    info_scaling.add_options(parser)
    info_resident.add_options(parser)
    info_licenses.add_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.scaling is not None:
        return info_scaling.show(args)
    if args.resident is not None:
        return info_resident.show(args)
    if args.licenses:
        return info_licenses.show(args)
    if args.model is not None:
        return describe_model(args)
    report = devices.probe()
    name, reason = devices.choose("auto")
    say = Say(args.json)
    graphs = cuda_graphs(name)
    host = host_path()
    for line in lines(report, name, reason, graphs, host):
        say.line(line)
    values: dict[str, Any] = {"device": name, "reason": reason, "versions": versions()}
    values["cuda_graphs"] = graphs
    values["host"] = {"path": host.name, "reason": host.reason, "file": host.file}
    say.object(values | dataclasses.asdict(report) | {"missing": _missing(report)})
    return 0


def describe_model(args: argparse.Namespace) -> int:
    """Show what a model's file holds."""
    path = Path(args.model)
    path = path / "model.safetensors" if path.is_dir() else path
    model, say = Model.load(path), Say(args.json)
    network, prepared = model.network, model.preprocessor
    columns = prepared.report() if prepared else dict.fromkeys(model.feature_names or (), "number")
    classes = None if model.classes is None else [as_text(c) for c in model.classes]
    values = {
        "model": str(path), "network": network.config(), "columns": columns,
        "inputs": prepared.output_names if prepared else None, "targets": model.target_names,
        "classes": classes,
        "parameters": sum(int(member.parameters.size) for member in members_of(network)),
    }  # fmt: skip
    several = ""
    if isinstance(network, Ensemble):
        values["members"] = len(network)
        several = f"{count(len(network), 'member')}, each "
    say.line(f"model         {path}")
    widths = "-".join(map(str, network.widths))
    acts = ", ".join(dict.fromkeys(str(act) for act in network.activations)) or "no hidden layer"
    say.line(f"network       {several}{widths}, {acts}, {network.output}, {network.dtype.name}")
    values |= info_resident.describe(network, say)
    if model.target_names:
        say.line(f"predicts      {', '.join(model.target_names)}")
    if classes:
        say.line(f"classes       {', '.join(classes)}")
    for name, what in columns.items():
        say.line(f"column        {name}: {what}")
    say.object(values)
    return 0


def cuda_graphs(name: str) -> dict[str, str]:
    """Say for an operation and for a layer why its plan is no CUDA graph; "" if it is one.

    On the CPU the result is empty.
    """
    if name == "cpu":
        return {}
    from gpubackprop.backends.cupy import Replay

    try:
        backend = backends.get(name)
        x, W, out = (backend.zeros((4, 4), np.float32) for _ in range(3))
        operation = backend.plan(lambda recorder: recorder.column_sum(x, out[0]))
        layer = backend.plan(lambda recorder: recorder.matmul(x, W, out))
    except GpubackpropError as error:
        return {"an operation": str(error), "a layer": str(error)}
    plans = {"an operation": operation, "a layer": layer}
    return {what: plan.uncaptured for what, plan in plans.items() if isinstance(plan, Replay)}


def lines(
    report: DeviceReport,
    name: str,
    reason: str,
    graphs: dict[str, str] | None = None,
    host: HostPath | None = None,
) -> list[str]:
    cpu, driver = report.cpu, report.driver
    cores = count(cpu.cores, "core")
    cores += f" of {cpu.machine_cores}" if cpu.machine_cores != cpu.cores else ""
    blas_threads = "an unknown number of" if cpu.blas_threads is None else f"{cpu.blas_threads}"
    text = [
        f"device        {name} ({reason})",
        f"processor     {cpu.model}, {cores}",
        f"BLAS          {blas_name(cpu)}, {blas_threads} threads; elementwise work on "
        f"{count(get_num_threads(), 'thread')}",
    ]
    if host is not None:
        where = f", {host.file}" if host.file else ""
        text.append(f"host path     {host.name} ({host.reason}{where})")
    text.append(f"driver        {_driver(report)}")
    text += [
        f"GPU {gpu.index}         {gpu.name}, {gpu.total_bytes / 2**30:.0f} GiB, "
        f"compute capability {'.'.join(map(str, gpu.compute_capability))}"
        for gpu in driver.gpus
    ]
    text += [
        f"CuPy          {_cupy(report.cupy)}",
        f"NVRTC         {_library(report.nvrtc)}",
        f"cuBLASLt      {_library(report.cublaslt)}",
        f"CUDA backend  {'present' if report.cuda_backend else 'not in this version'}",
    ]
    text.append(f"precision     {_precision(report, name)}")
    text += [
        f"CUDA graphs   {what}: " + (f"call by call ({why})" if why else "captured")
        for what, why in (graphs or {}).items()
    ]
    if report.missing:
        text += ["", "missing for CUDA, in the order in which to mend it:"]
        for number, lack in enumerate(report.missing, 1):
            text += [f"  {number}. {lack.what}", f"     {lack.remedy}"]
    text += ["", "versions"]
    return text + [f"  {package:<14}{version}" for package, version in versions().items()]


def _precision(report: DeviceReport, device: str) -> str:
    """Return the precisions of a network on that device."""
    gpus = {f"cuda:{gpu.index}": gpu.compute_capability for gpu in report.driver.gpus}
    if device not in gpus:
        emulated = "(16 bits are computed in 32, tf32 is emulated)"
        return f"auto is float32; {', '.join(PRECISIONS)} {emulated}"
    major, minor = gpus[device]
    has = has_tf32(10 * major + minor)
    text = f"auto is {automatic(10 * major + minor)}; "
    text += ", ".join(each for each in PRECISIONS if has or each != "tf32")
    if has and os.environ.get("CUPY_TF32") == "1":
        text += "; float32 is multiplied in tf32 too, as CUPY_TF32=1 asks"
    return text


def _driver(report: DeviceReport) -> str:
    driver = report.driver
    if driver.status != "ready":
        return driver.problem
    served = driver.cuda_version
    return "ready" + (f", serves CUDA {served[0]}.{served[1]}" if served else "")


def _cupy(cupy: CupyReport) -> str:
    if cupy.version is None:
        return "not installed"
    built = f" for CUDA {cupy.cuda_major}" if cupy.cuda_major else ""
    return f"{cupy.version}{built}" + (f", does not import: {cupy.error}" if cupy.error else "")


def _library(library: CudaLibrary | None) -> str:
    if library is None:
        return "not found"
    version = "{}.{}, ".format(*library.version) if library.version else ""
    return version + library.path


def _missing(report: DeviceReport) -> list[dict[str, str]]:
    return [lack._asdict() for lack in report.missing]
