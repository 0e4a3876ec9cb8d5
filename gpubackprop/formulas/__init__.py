"""The mathematics as data: activations, pointwise losses and updates, each one registry entry."""

from gpubackprop.formulas.activations import ACTIVATIONS, Activation, activation
from gpubackprop.formulas.dropout import Dropout
from gpubackprop.formulas.losses import OUTPUTS, POINTWISE_LOSSES, PointwiseLoss, pointwise_loss
from gpubackprop.formulas.registry import lookup
from gpubackprop.formulas.updates import UPDATES, Update, update

__all__ = [
    "ACTIVATIONS",
    "OUTPUTS",
    "POINTWISE_LOSSES",
    "UPDATES",
    "Activation",
    "Dropout",
    "PointwiseLoss",
    "Update",
    "activation",
    "lookup",
    "pointwise_loss",
    "update",
]
