"""Benchmarks: each contestant in a process of its own, checked against the oracle before it is timed.

    python -m benchmarks --help
"""
