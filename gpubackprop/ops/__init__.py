"""Operations: forward and backward pairs on arrays, no network needed.

Rows are samples. Arrays are NumPy's, or lie on a GPU: CuPy's, or what shows CUDA memory by DLPack
or __cuda_array_interface__. There an operation queues its work on the current stream of the arrays'
device, copies nothing to the host and gives CuPy arrays. All arrays of a call lie in one place.
Every shape and option is checked here, for both.
"""

from gpubackprop.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from gpubackprop.ops.layers import (
    activation_backward,
    activation_forward,
    affine_backward,
    affine_forward,
    column_sum,
)
from gpubackprop.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy
from gpubackprop.ops.pointwise_loss import pointwise_loss
from gpubackprop.ops.softmax_cross_entropy import (
    RowDetails,
    log_softmax,
    softmax,
    softmax_cross_entropy,
)

__all__ = [
    "LinearCrossEntropy",
    "RowDetails",
    "activation_backward",
    "activation_forward",
    "affine_backward",
    "affine_forward",
    "column_sum",
    "dropout_backward",
    "dropout_forward",
    "dropout_mask",
    "linear_cross_entropy",
    "log_softmax",
    "pointwise_loss",
    "softmax",
    "softmax_cross_entropy",
]
