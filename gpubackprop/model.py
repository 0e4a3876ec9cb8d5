"""A trained network with what it takes to use it on raw data, and its file."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np

from gpubackprop import model_file
from gpubackprop.data import Standardizer, TablePreprocessor, check_finite
from gpubackprop.data.classes import as_text, check_classes, class_indices
from gpubackprop.data.files import Where, row_from_1, shorten
from gpubackprop.data.frames import as_inputs, as_targets
from gpubackprop.data.preprocessor import Surprises
from gpubackprop.ensemble import Ensemble, members_of
from gpubackprop.errors import (
    DataError,
    GpubackpropError,
    ModelFileError,
    OptionError,
    ShapeError,
)
from gpubackprop.network import MLP
from gpubackprop.onnx import model as onnx_model
from gpubackprop.ops.checks import no_own_methods, number
from gpubackprop.ops.display import html_table, names

Array = np.ndarray


@dataclass
class Model:
    """A network, the standardisation of its inputs, and the names of columns and classes.

    Parts that were assigned are checked when they are next used. A preprocessor that is assigned
    brings its standardizer and its names along.

    Parameters
    ----------
    network : MLP or Ensemble
        The trained network, or several whose predictions are averaged.
    standardizer : Standardizer, TablePreprocessor or None
        Applied to raw inputs before the network. A preprocessor may be given here too.
    feature_names : sequence of D_0 str, or None
        Columns of the training data, in order. The standardizer's names are taken if it has any. A
        data frame's columns are found by these names.
    target_names : sequence of str, or None
        Names of the K target columns, or of the one column that holds the labels.
    classes : (K,) array-like or None
        Labels in the order of the output units; None for regression. A network of one logistic unit
        may have two classes.
    preprocessor : TablePreprocessor or None
        Applied to raw tables, text and missing values included, before the network. Its columns are
        the feature_names, and its standardizer is the model's.

    Raises
    ------
    ShapeError
        Names or classes do not fit the number of units.
    DtypeError
        The classes have a dtype that a file cannot hold.
    DataError
        A class is missing, or is there twice.
    OptionError
        A part has the wrong type, or feature_names are not the standardizer's.

    Examples
    --------
    >>> from gpubackprop import MLP
    >>> model = Model(MLP([2, 2], initializer="zeros"), classes=np.array(["no", "yes"]))
    >>> model.predict(np.zeros((1, 2)))
    array([[0.5, 0.5]], dtype=float32)
    >>> print(model.predict_labels(np.zeros((1, 2))))
    ['no']
    """

    network: MLP | Ensemble
    standardizer: Standardizer | None = None
    feature_names: Sequence[str] | None = None
    target_names: Sequence[str] | None = None
    classes: Array | None = None
    preprocessor: TablePreprocessor | None = None

    def __post_init__(self) -> None:
        self._checked: dict[str, Any] = {}  # the parts that were last found to fit together
        self._check()

    def _parts(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def _check_assigned(self) -> None:
        """Check the parts if one of them has been assigned since they were checked."""
        known = vars(self).setdefault("_checked", {})
        if any(part is not known.get(name) for name, part in self._parts().items()):
            self._check()

    def _described(self) -> dict[str, Any]:
        classes = None if self.classes is None else np.asarray(self.classes).tolist()
        lists = {
            "features": self.feature_names, "targets": self.target_names, "classes": classes,
        }  # fmt: skip
        shown = {name: names(values) for name, values in lists.items() if values is not None}
        first = {"preprocessor": self.preprocessor, "standardizer": self.standardizer}
        return {name: part for name, part in first.items() if part is not None} | shown

    def __repr__(self) -> str:
        more = "".join(f"\n  {name}: {value}" for name, value in self._described().items())
        return f"Model of {self.network!r}{more}"

    def _repr_html_(self) -> str:
        rows = [[name, str(value)] for name, value in self._described().items()]
        return self.network._repr_html_() + (html_table("Model", ["", ""], rows) if rows else "")

    # -- predicting -------------------------------------------------------------------------------

    def predict(self, x: Any, *, batch_rows: int = 4096) -> Array:
        """Return yhat for raw inputs, computed batch by batch.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            An array's columns are taken as they come. The columns of a frame (pandas, polars,
            pyarrow) are found by `feature_names`: their order does not matter, and others are
            ignored. With a preprocessor, they may hold text, dates and missing values; a warning
            counts categories, and gaps in columns, that the training had not.
        batch_rows : int
            Rows that are computed at a time.

        Returns
        -------
        (N, K) NumPy array
            Probabilities or values, in the network's compute dtype, whatever the device of the
            network and of x.

        Raises
        ------
        ShapeError
            x does not have D_0 columns.
        DtypeError
            x is no array of numbers.
        DataError
            x holds NaN or infinity, or inputs so large that the output is NaN (the row is named). A
            frame's column is absent, there twice, text, or has a missing value (the column is
            named).
        """
        surprises = Surprises()
        x = self._inputs(x, surprises)
        if str(surprises):
            warnings.warn(f"x: {surprises}", stacklevel=2)
        result = np.empty((len(x), self.network.widths[-1]), self.network.dtype)
        for start, yhat in self._batches(x, batch_rows):
            result[start : start + len(yhat)] = yhat
        return result

    def predict_batches(
        self, x: Any, *, batch_rows: int = 4096, surprises: Surprises | None = None
    ) -> Iterator[tuple[int, Array]]:
        """Yield predictions batch by batch, for inputs or results that exceed memory.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `predict`.
        batch_rows : int
            Rows of a batch.
        surprises : Surprises or None
            With a preprocessor: is given the number of values that training had not.

        Yields
        ------
        first_row : int
            Index of the batch's first row.
        yhat : (n, K) NumPy array
            Predictions for the batch.
        """
        yield from self._batches(self._inputs(x, surprises), batch_rows)

    def predict_labels(self, x: Any) -> Array:
        """Return the most probable class of each row.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `predict`.

        Returns
        -------
        array
            Labels (N,) in the dtype of the classes. A multilabel model, which has logistic output
            and no classes, gives (N, K) of 0 and 1.

        Raises
        ------
        OptionError
            The model has no classes.
        ShapeError
            A part was assigned that does not fit the others.
        """
        self._check_has_labels()
        return self.labels(self.predict(x))

    def labels(self, yhat: Array) -> Array:
        """Return the labels that belong to predictions.

        Parameters
        ----------
        yhat : (N, K) array
            What `predict` returned.

        Returns
        -------
        (N,) or (N, K) array
            As for `predict_labels`.

        Raises
        ------
        OptionError
            The model has no classes.
        """
        self._check_has_labels()
        if self.classes is None:
            return (yhat > 0.5).astype(np.int64)
        return np.asarray(self.classes)[self._class_of(yhat)]

    def evaluate(self, x: Any, targets: Any) -> dict[str, float]:
        """Compare predictions with targets: accuracy, or root mean squared error.

        Parameters
        ----------
        x : (N, D_0) array or data frame
            As for `predict`.
        targets : array-like or data frame
            Labels (N,), or numbers (N,) or (N, K) in the units of the predictions. A data frame's
            columns are found by `target_names`.

        Returns
        -------
        dict
            "accuracy" of a model with classes; "accuracy" of a multilabel model, the share of rows
            of which every label is right; else "rmse".

        Raises
        ------
        DataError
            A label is missing or unknown to the model (the row is named), or the targets have
            another kind or shape.
        """
        return self.compare(self.predict(x), targets)

    def compare(self, yhat: Array, targets: Any) -> dict[str, float]:
        """Compare predictions that were made before with targets.

        Parameters
        ----------
        yhat : (N, K) array
            What `predict` returned.
        targets : (N,) or (N, K) array-like, or data frame
            As for `evaluate`.

        Returns
        -------
        dict
            As for `evaluate`.

        Raises
        ------
        DataError
            As for `evaluate`.
        """
        self._check_assigned()
        y = as_targets(targets, "targets", self.target_names)
        if y.ndim == 0 or len(y) != len(yhat):
            raise DataError(
                f"{len(yhat)} predictions cannot be compared with targets of shape {y.shape}"
            )
        if self.classes is not None:
            return {
                "accuracy": float(np.mean(self._class_of(yhat) == class_indices(y, self.classes)))
            }
        y = y[:, None] if y.ndim == 1 else y
        if y.dtype.kind not in "fiub" or y.shape != yhat.shape:
            raise DataError(
                f"targets of {y.dtype} and shape {y.shape} cannot be compared with predictions of "
                f"shape {yhat.shape}; pass the target columns of the training"
            )
        check_finite(y, source="targets", names=self.target_names)
        if self.network.output == "logistic":
            return {"accuracy": float(np.mean(((yhat > 0.5) == (y > 0.5)).all(1)))}
        error = yhat.astype(np.float64) - y
        return {"rmse": math.sqrt(float(np.mean(error**2)))}

    def _class_of(self, yhat: Array) -> Array:
        """Return the class index of each row of outputs (N, K).

        A single logistic unit gives the probability of the second of two classes.
        """
        if self.classes is not None and len(self.classes) > yhat.shape[1]:
            return (yhat[:, 0] > 0.5).astype(np.int64)
        return yhat.argmax(1)

    def _check_has_labels(self) -> None:
        self._check_assigned()
        if self.classes is None and self.network.output != "logistic":
            hint = "predict(x).argmax(1)" if self.network.output == "softmax" else "predict"
            raise OptionError(
                f"this model has no classes: it was trained for numbers, or without their names; "
                f"use {hint}"
            )

    def _inputs(self, x: Any, surprises: Surprises | None = None) -> Array:
        """Return `x` as (N, D_0) on the host, a frame's columns in the order of `feature_names`.

        With a preprocessor they are encoded and standardised already.
        """
        self._check_assigned()
        backend = self.network.backend
        if backend.is_device_array(x):
            x = backend.to_host(backend.asarray(x))
        if self.preprocessor is not None:
            return self.preprocessor.inputs(x, self.network.dtype, surprises=surprises)
        return self.network.check_inputs(as_inputs(x, "x", self.feature_names).array)

    def _batches(self, x: Array, batch_rows: int) -> Iterator[tuple[int, Array]]:
        network, size = self.network, int(number(batch_rows, "batch_rows", 1, whole=True))
        for start in range(0, len(x), size):
            batch = x[start : start + size]
            if self.preprocessor is not None:
                pass  # it has standardised and checked them
            elif self.standardizer is None:
                check_finite(batch, names=self.feature_names, where=_row_after(start))
            else:
                batch = self.standardizer.transform(
                    batch, dtype=network.dtype, first_row=start, names=self.feature_names
                )
            with np.errstate(over="ignore", invalid="ignore"):  # NaN is reported below, by row
                yhat = network.backend.to_host(network.predict(batch))
            if np.isnan(yhat).any():
                row = start + int(np.argwhere(np.isnan(yhat))[0][0])
                raise DataError(
                    f"x: {row_from_1(row)} gives NaN, though its values are finite; they are too "
                    f"large for {network.precision}: check them, the largest is "
                    f"{np.abs(np.asarray(x[row : row + 1], np.float64)).max():g}"
                )
            yield start, yhat

    # -- checks -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Bring names and classes into the form that a file has, or raise."""
        network = self.network
        if not isinstance(network, MLP | Ensemble):
            raise OptionError(
                f"network is a {type(network).__name__} but must be an MLP or an Ensemble"
            )
        if isinstance(network, Ensemble):
            network.check_members()  # a file has one architecture for all
        self._check_preprocessor()
        standardizer = self.standardizer
        inputs, units = network.widths[0], network.widths[-1]
        if standardizer is not None:
            if not isinstance(standardizer, Standardizer):
                raise OptionError(
                    f"standardizer is a {type(standardizer).__name__} but must be a "
                    "gpubackprop.data.Standardizer"
                )
            if len(standardizer.mean) != inputs:
                raise ShapeError(
                    f"the standardizer is of {len(standardizer.mean)} columns but the network has "
                    f"{inputs} input units"
                )
        self.feature_names = _check_names(self.feature_names, "feature_names")
        fitted = standardizer.feature_names if standardizer is not None else None
        if self.feature_names is None and fitted is not None:
            self.feature_names = list(fitted)
        if fitted is not None and self.feature_names != list(fitted):
            raise OptionError(
                f"feature_names {self.feature_names} are not those that the standardizer was "
                f"fitted with, {list(fitted)}; leave feature_names out"
            )
        if self.preprocessor is not None:
            self.feature_names = self.preprocessor.input_names
        elif self.feature_names is not None and len(self.feature_names) != inputs:
            raise ShapeError(f"{len(self.feature_names)} feature_names but {inputs} input units")
        self.classes = None if self.classes is None else _check_class_count(self.classes, network)
        self.target_names = _check_names(self.target_names, "target_names") or None
        counts = {units} if self.classes is None and network.output != "softmax" else {1, units}
        if self.target_names is not None and len(self.target_names) not in counts:
            raise ShapeError(f"{len(self.target_names)} target_names but {units} output units")
        self._checked = self._parts()

    def _check_preprocessor(self) -> None:
        """Take the preprocessor's standardizer, or raise if the parts do not fit."""
        if isinstance(self.standardizer, TablePreprocessor):
            if self.preprocessor not in (None, self.standardizer):
                raise OptionError("two preprocessors were given; leave one out")
            self.preprocessor, self.standardizer = self.standardizer, None
        prepared = self.preprocessor
        if prepared is None:
            return
        if not isinstance(prepared, TablePreprocessor):
            raise OptionError(
                f"preprocessor is a {type(prepared).__name__} but must be a "
                "gpubackprop.data.TablePreprocessor"
            )
        before = self._checked.get("preprocessor")
        if before is not None and prepared is not before:  # what it brought along goes with it
            if self.standardizer is before.standardizer:
                self.standardizer = None
            if self.feature_names == before.input_names:
                self.feature_names = None
        if self.standardizer not in (None, prepared.standardizer):
            raise OptionError(
                "the preprocessor has a standardizer; leave the model's out, or give the model "
                "another preprocessor"
            )
        self.standardizer = prepared.standardizer
        units, columns = self.network.widths[0], len(prepared.output_names)
        if columns != units:
            raise ShapeError(
                f"the preprocessor gives {columns} columns but the network has {units} input units"
            )
        names = _check_names(self.feature_names, "feature_names")
        if names not in (None, prepared.input_names):
            raise OptionError(
                f"feature_names {names} are not those of the preprocessor, "
                f"{prepared.input_names}; leave feature_names out"
            )

    def _refuse_own_methods(self, lost: str) -> None:
        no_own_methods(self.network, ("predict",), lost)
        for member in members_of(self.network):
            no_own_methods(member, ("predict", "logits"), lost)

    # -- files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Its tensors are layers.<l>.weight and layers.<l>.bias (l from 0), input.mean and
        input.scale; those of an ensemble's networks begin with members.<k>. (k from 0). A temporary
        file is written, synced and renamed, so that an existing file is
        replaced whole or not at all.

        Parameters
        ----------
        path : path
            The file to write.

        Raises
        ------
        StorageError
            The disk is full, the folder is read-only, or the like.
        DataError
            The weights hold NaN or infinity, which `load` would refuse.
        OptionError
            The network is of a class with a `predict` or `logits` of its own.
        """
        self._check()
        self._refuse_own_methods("a file would not have")
        model_file.write(
            path, self.network, self.standardizer, self.classes, self.preprocessor,
            feature_names=self.feature_names, target_names=self.target_names,
        )  # fmt: skip

    def to_onnx(
        self, path: str | os.PathLike[str] | None = None, *, input_dtype: str | None = None
    ) -> Any:
        """Export the model, with preprocessor and standardisation, as an ONNX graph.

        Its input "x" (N, D_0) has raw inputs. It computes in the network's dtype what `predict`
        does; a network of 16 bits computes in its parameters' float32. A model with a preprocessor
        has an input (N, 1) for each column of the table, by its name: numbers and booleans, NaN
        where one is missing; dates as seconds since 1970 and times as seconds since midnight, both
        of float64; categories as text, "" where one is missing. The outputs are
        "probabilities" or "predictions" (N, K), the result of `predict`, and before it "label", the
        result of `predict_labels`, if the model has labels: int64, bool, double, or text (other
        kinds of classes as text). Names and classes are in the metadata, as JSON. Where `predict`
        raises an error for a value, the graph gives NaN.

        Parameters
        ----------
        path : path or None
            The file to write, whole or not at all; None writes none.
        input_dtype : {"float32", "float64"} or None
            Dtype of the inputs. None is that of the network, or float64 if float32 would blur a
            column, such as seconds since 1970.

        Returns
        -------
        onnx.ModelProto
            The checked graph, of opset 17.

        Raises
        ------
        MissingDependencyError
            The package onnx is not installed.
        OptionError
            input_dtype is another one, or the file would be larger than 2 GiB, or the network or
            the model is of a class with a `predict` or the like of its own.
        DataError
            The weights hold NaN or infinity.
        StorageError
            The disk is full, the folder is read-only, or the like.

        Examples
        --------
        >>> from gpubackprop import MLP
        >>> graph = Model(MLP([2, 2]), classes=["no", "yes"]).to_onnx().graph
        >>> [output.name for output in graph.output]
        ['label', 'probabilities']
        """
        self._check()
        no_own_methods(self, ("predict", "predict_labels", "labels"), "a graph would not have")
        self._refuse_own_methods("a graph would not have")
        return onnx_model.export(self, path, input_dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Model:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
            The file to read.
        device : str
            Where the network lies, as for `MLP`, whatever device it was trained on.

        Returns
        -------
        Model
            The model.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ModelFileError
            The file is damaged or of another kind; the message names it and says what is wrong.
        """
        parts = model_file.read(path)
        try:
            model = cls(**parts)
        except GpubackpropError as error:
            raise ModelFileError(f"{path}: {error}") from error
        if device != "cpu":
            model.network = model.network.copy(device)
        return model


def _row_after(first: int) -> Where:
    """Return a function that names the rows of a batch whose first row is `first`."""
    return lambda row: row_from_1(first + row)


@overload
def in_target_units(network: MLP, scaling: Standardizer) -> MLP: ...
@overload
def in_target_units(network: Ensemble, scaling: Standardizer) -> Ensemble: ...
def in_target_units(network: MLP | Ensemble, scaling: Standardizer) -> MLP | Ensemble:
    """Return a copy on the CPU whose outputs have the units of the targets: scale (W h + b) + mean.

    `network` has linear output and was trained on ``scaling.transform(targets)``. The copy computes
    in float32 or float64 throughout: 16 bits hold standardised targets well, but would round y =
    2024 to a multiple of 8. If float32 cannot tell neighbouring targets apart either, the copy is
    in float64.

    Of an ensemble it is an ensemble of such copies.
    """
    if isinstance(network, Ensemble):
        return Ensemble([in_target_units(member, scaling) for member in network.members])
    if network.output != "linear":
        raise OptionError(
            f"the network has output {network.output!r}; only those of linear output have a unit"
        )
    if len(scaling.mean) != network.widths[-1]:
        raise ShapeError(
            f"the scaling is of {len(scaling.mean)} columns but the network has "
            f"{network.widths[-1]} output units"
        )
    mean, scale = scaling.mean, scaling.scale
    with np.errstate(over="ignore", invalid="ignore"):
        coarse = ~(np.spacing(np.abs(mean).astype(np.float32)) <= scale / 1000)
    twin = MLP(
        network.widths, network.activations, output=network.output, initializer="zeros",
        dtype="float64" if coarse.any() else network.dtype.name, dropout=network.dropout,
    )  # fmt: skip
    to_host = network.backend.to_host
    for own, theirs in zip([*twin.W, *twin.b], [*network.W, *network.b], strict=True):
        own[...] = to_host(theirs)
    twin.W[-1][...] = twin.W[-1] * scale[:, None]
    twin.b[-1][...] = twin.b[-1] * scale + mean
    return twin


def _check_names(names: Any, what: str) -> list[str] | None:
    """Return `names` as text; raise OptionError if they are no sequence of names."""
    if names is None:
        return None
    unordered = isinstance(names, str | bytes | dict | set | frozenset)
    several = hasattr(names, "__iter__") and getattr(names, "ndim", 1) == 1 and not unordered
    listed = [*names] if several else []
    if not several or any(isinstance(name, list | np.ndarray) for name in listed):
        raise OptionError(f"{what} is {shorten(names)}, which is not a list of names")
    try:
        return [as_text(name) for name in listed]
    except UnicodeDecodeError as error:
        raise OptionError(f"{what} holds bytes that are not UTF-8: {error.object!r}") from None


def _check_class_count(classes: Any, network: MLP | Ensemble) -> Array:
    array, units = check_classes(classes), network.widths[-1]
    two = network.output == "logistic" and units == 1 and len(array) == 2
    if len(array) != units and not two:
        raise ShapeError(
            f"classes has shape {array.shape} but there are {units} output units, one for each "
            "class"
        )
    return array
