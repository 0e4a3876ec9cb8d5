"""Models as ONNX graphs: the standardisation, the layers, the output function and the labels.

`Model.to_onnx` and the estimators of `gpubackprop.sklearn` are the ways in.
"""
