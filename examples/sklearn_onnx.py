"""A scikit-learn pipeline with text and gaps, exported whole, and run by onnxruntime alone."""

from __future__ import annotations

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from gpubackprop.sklearn import MLPClassifier

rng = np.random.default_rng(0)
size = rng.normal(10, 2, (200, 2)).astype(np.float32)
size[rng.random((200, 2)) < 0.05] = np.nan
colour = rng.choice(["blue", "red"], (200, 1)).astype(object)
kind = np.where((np.nan_to_num(size[:, 0], nan=10) > 10) == (colour[:, 0] == "red"), "a", "b")
table = np.concatenate([size.astype(object), colour], axis=1)

numbers = make_pipeline(SimpleImputer(), StandardScaler())
columns = make_column_transformer((numbers, [0, 1]), (OneHotEncoder(), [2]))
pipeline = make_pipeline(columns, MLPClassifier((16,), max_iter=500, tol=1e-3, random_state=0))
pipeline.fit(table, kind)

types = [("size", FloatTensorType([None, 2])), ("colour", StringTensorType([None, 1]))]
graph = to_onnx(pipeline, initial_types=types, options={"zipmap": False})

session = onnxruntime.InferenceSession(graph.SerializeToString())
label, probabilities = session.run(None, {"size": size, "colour": colour})
print("largest difference:", np.abs(probabilities - pipeline.predict_proba(table)).max())
print("equal labels:", (label == pipeline.predict(table)).all())
