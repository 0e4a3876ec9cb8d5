"""Benchmarks: this library on CPU and GPU, its peers, and the limit of the machine, in one run.

`shapes` says what is measured, `problems` what it computes (inputs, float64 oracle, bytes, flops),
`ours`, `expressions` and `*_peer` who computes it, each in a process of its own (`worker`);
`harness` times them in turn. ``gpubackprop bench`` and ``python -m benchmarks`` are the front ends.

Every provider's result is held to the oracle before it is timed. Figures of one run may be
compared, never times of two.
"""
