"""Many networks trained in one call."""

from gpubackprop.many.fit import fit_many

__all__ = ["fit_many"]
