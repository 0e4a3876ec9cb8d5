"""Benchmarks: each contestant in its own process, checked against the oracle before it is timed.

python -m benchmarks --help
"""
