"""Operations: forward and backward pairs on arrays, no network needed.

Rows are samples. Every shape and option is checked here.
"""

from gpubackprop.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from gpubackprop.ops.layers import (
    activation_backward,
    activation_forward,
    affine_backward,
    affine_forward,
    column_sum,
)
from gpubackprop.ops.pointwise_loss import pointwise_loss
from gpubackprop.ops.softmax_cross_entropy import softmax, softmax_cross_entropy

__all__ = [
    "activation_backward",
    "activation_forward",
    "affine_backward",
    "affine_forward",
    "column_sum",
    "dropout_backward",
    "dropout_forward",
    "dropout_mask",
    "pointwise_loss",
    "softmax",
    "softmax_cross_entropy",
]
