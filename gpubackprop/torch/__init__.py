from gpubackprop.torch.bridge import LabelError, check_labels
from gpubackprop.torch.cross_entropy import CrossEntropyLoss, cross_entropy
from gpubackprop.torch.layers import Linear, LinearAct, linear_act
from gpubackprop.torch.optimizers import SGD, Adam, AdamW
from gpubackprop.torch.linear_cross_entropy import linear_cross_entropy

__all__ = ['linear_cross_entropy','SGD','Adam','AdamW',"CrossEntropyLoss", "LabelError", "Linear", "LinearAct", "check_labels", "cross_entropy", "linear_act"]
