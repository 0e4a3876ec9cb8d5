"""Programs on top of `gpubackprop.bench`: the whole run, pytest-benchmark files, tables and
pictures.

python -m benchmarks --help
python -m benchmarks.report --help
"""
