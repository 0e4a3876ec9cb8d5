"""Break the kernels one line at a time and see whether the kernel tests notice.

`mutations` makes the mutants, `judge` finds out what becomes of each in a copy of the tree
(`copies`, with pytest in `worker`), `record` keeps it in tests/mutants.json, `report` makes tables.
`equivalent` lists what no test can see, with the reason. `python -m tools.mutants --help`.
"""
