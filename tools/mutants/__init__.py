"""Break the kernels one line at a time and see whether the kernel tests notice.

`mutations` makes the mutants. `judge` finds a verdict on each in a copy of the tree (`copies`, with
pytest in `worker`). `record` keeps the verdicts in tests/mutants.json, and `report` makes tables.
`equivalent` lists the mutants that no test can see, with the reason. See `python -m tools.mutants
--help`.
"""
