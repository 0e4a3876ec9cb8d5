"""Benchmarks: one run times this library on CPU and GPU, its peers, and the limit of the machine.

`shapes` defines a case. `problems` defines what it computes: inputs, float64 oracle, bytes, flops.
`ours`, `expressions` and `*_peer` are the providers that compute it, each in its own process
(`worker`). `harness` times them in turn. ``gpubackprop bench`` and ``python -m benchmarks`` are the
front ends.

Every provider's result is compared with the oracle before it is timed. Compare figures of one run,
never times of two runs.
"""
