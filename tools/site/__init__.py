"""The documentation site: pages that run, figures, the numbers of the interactive page."""
