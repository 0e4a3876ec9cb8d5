"""Subnormal numbers on a GPU: as the backend compiles its kernels, none is flushed to zero.

The values are held by `test_activations.py::test_activation_of_subnormals_keeps_them`, on a GPU too;
but emulated kernels are compiled for the CPU and say nothing of the flag, so the compiler is asked.
Inside exp, NVIDIA's library flushes what it has scaled out of the subnormal range before.
"""

from __future__ import annotations

import pytest

from gpubackprop.backends.cupy.compiling import OPTIONS
from tests.emulator import compilers

ENTRIES = [
    ("activation_backward.cu", (("ONLY_FORMULA", "relu"), ("ONLY_DTYPE", "f32"))),
    ("update.cu", (("ONLY_FORMULA", "sgd"), ("ONLY_DTYPE", "f32"))),
    ("column_sum.cu", (("ONLY_DTYPE", "f32"),)),
    ("pointwise_loss.cu", (("ONLY_FORMULA", "squared_error"), ("ONLY_DTYPE", "f32"))),
]


@pytest.mark.parametrize(("source", "defines"), ENTRIES, ids=[source for source, _ in ENTRIES])
def test_kernels_compiled_with_the_backends_options_flush_no_subnormal(
    source, defines, monkeypatch
):
    compiler = compilers.compiler()
    if not isinstance(compiler, compilers.Nvrtc):
        pytest.skip("needs NVRTC, which the backend compiles with: pip install nvidia-cuda-nvrtc")
    found = {}
    for flag in ("", "--ftz=true"):  # the second is what CuPy's RawModule(code=...) would add
        monkeypatch.setattr(compilers, "OPTIONS", (*OPTIONS, flag) if flag else OPTIONS)
        found[flag] = ".ftz." in compiler.compile(source, 90, defines)[0]
    assert found == {"": False, "--ftz=true": True}
