"""The report of a training as one HTML file, which needs no network and no other file.

`page` puts sections together, `svg` draws, `sections` has what a training is asked about, and
`importance` measures by how much each column matters.
"""
