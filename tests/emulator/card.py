"""An emulated card in front of a module: ``python -m tests.emulator.card -m MODULE ARGUMENTS``.

`cupy` is the stand-in, and "cuda" is chosen as on a machine with a GPU. For rehearsals of `make
gpu`, GPUBACKPROP_PLANT="MODULE:FAULT" plants a fault in one module: "fail" raises, "hang" sleeps,
"stuck" sleeps and does not heed SIGINT, "crash" ends by SIGSEGV.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def plant(module: str) -> None:
    target, _, fault = os.environ.get("GPUBACKPROP_PLANT", "").partition(":")
    if target != module:
        return
    if fault == "fail":
        raise RuntimeError("a planted failure")
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "stuck":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if fault in ("hang", "stuck"):
        time.sleep(600)


def main() -> None:
    assert sys.argv[1] == "-m", "usage: python -m tests.emulator.card -m MODULE ARGUMENTS"
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    plant(module)

    import runpy

    from gpubackprop.backends import devices
    from gpubackprop.bench import process
    from tests.emulator import cupy_arrays

    devices.choose = lambda device: ("cpu", "") if device == "cpu" else ("cuda:0", "emulated")
    process.PYTHON = [sys.executable, "-m", "tests.emulator.card"]
    with cupy_arrays.installed():
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
