"""What softmax cross entropy says to arguments that do not fit: the thing, and what to do."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.errors import (
    DtypeError,
    GpubackpropError,
    OptionError,
    ShapeError,
    TargetRangeError,
)
from tests import ways
from tests.ways import softmax, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("way")

Z = np.zeros((6, 4))
T = np.array([0, 1, 2, 3, 0, 1])
REFUSED = [
    # arguments, error, text
    ({"targets": [0, 1, 4, 3, 0, 9]}, TargetRangeError,
     r"targets\[2\] is 4 but labels must be in \[0, 4\); 2 of 6 rows are out of range$"),
    ({"targets": [0, 1, 2, -1, 0, 1]}, TargetRangeError,
     r"targets\[3\] is -1 but .*; to leave rows out pass ignore_index"),
    ({"targets": [0, 1, 2, -1, 0, 7], "ignore_index": -1}, TargetRangeError, r"targets\[5\] is 7"),
    ({"targets": [0, 1, 2, -100, 0, 1], "ignore_index": -1}, TargetRangeError, "is -100"),
    ({"targets": np.array([2**63, 0, 0, 0, 0, 0], np.uint64)}, TargetRangeError,
     r"targets\[0\] is 9223372036854775808"),
    ({"targets": np.eye(4, dtype=int)[T]}, ShapeError,
     r"shape \(6, 4\) and dtype int64 .* wants \(6,\) class indices for logits \(6, 4\); for "
     r"one-hot rows pass targets.argmax\(1\)"),
    ({"targets": np.eye(4, dtype=bool)[T]}, ShapeError, "for one-hot rows pass"),
    ({"targets": T.astype(float)}, DtypeError, r"class indices are integers; use targets.astype"),
    ({"targets": T[:5]}, ShapeError, r"targets has shape \(5,\) .* wants \(6,\) class indices or"),
    ({"targets": T[:, None]}, ShapeError, r"targets has shape \(6, 1\)"),
    ({"targets": 3}, ShapeError, r"targets has shape \(\)"),
    ({"targets": np.zeros((6, 4), complex)}, DtypeError, "targets has dtype complex128"),
    ({"targets": ["a"] * 6}, DtypeError, "targets has dtype <U1"),
    ({"targets": [[0.5, 0.5], [1.0]]}, DtypeError, "targets is no array of numbers"),
    ({"targets": np.full((6, 4), 0.25), "ignore_index": 0}, OptionError, "goes with class indices"),
    ({"logits": np.zeros(4)}, ShapeError, r"logits has shape \(4,\)"),
    ({"logits": np.zeros((6, 4, 2))}, ShapeError, r"logits has shape \(6, 4, 2\)"),
    ({"logits": np.zeros((6, 0))}, ShapeError, "a softmax wants at least one class"),
    ({"logits": np.zeros((6, 4), int)}, DtypeError, r"dtype int64 .*astype\(np.float32\)"),
    ({"logits": np.zeros((6, 4), np.complex64)}, DtypeError, "logits has dtype complex64"),
    ({"logits": np.zeros((6, 4), np.longdouble)}, DtypeError, "logits has dtype"),
    ({"logits": np.zeros((6, 4), object)}, DtypeError, "logits has dtype object"),
    ({"logits": np.zeros((6, 4), ">f4")}, DtypeError, "logits has dtype >f4 .*; convert it with"),
    ({"logits": [[1.0, 2.0], [3.0]]}, DtypeError, "every row of one length"),
    ({"class_weight": [1, 2, 3]}, ShapeError, r"class_weight has shape \(3,\) .* wants \(4,\)"),
    ({"class_weight": [1, 2, -3, 1]}, OptionError, r"class_weight\[2\] is -3"),
    ({"class_weight": [1, np.nan, 3, 1]}, OptionError, r"class_weight\[1\] is nan"),
    ({"class_weight": ["a", "b", "c", "d"]}, DtypeError, "class_weight is no array of numbers"),
    ({"sample_weight": np.ones(5)}, ShapeError, r"sample_weight has shape \(5,\) .* wants \(6,\)"),
    ({"sample_weight": [1, 1, 1, -0.5, 1, 1]}, OptionError, r"sample_weight\[3\] is -0.5"),
    ({"sample_weight": [1, np.inf, 1, 1, 1, 1]}, OptionError, r"sample_weight\[1\] is inf"),
    ({"label_smoothing": 1.5}, OptionError, "is 1.5 but .* at least 0 and at most 1"),
    ({"label_smoothing": np.nan}, OptionError, "label_smoothing is nan"),
    ({"label_smoothing": "0.x"}, OptionError, "label_smoothing is '0.x'"),
    ({"z_loss": -1e-4}, OptionError, "z_loss is -0.0001"),
    ({"reduction": "average"}, OptionError, "is 'average' but must be one of 'mean', 'sum'"),
    ({"reduction": "elementwise_mean"}, OptionError, "must be one of 'mean', 'sum', 'none'"),
    ({"empty": "none"}, OptionError, "empty is 'none'"),
    ({"ignore_index": 1.5}, OptionError, "ignore_index is 1.5"),
    ({"ignore_index": "a"}, OptionError, "ignore_index is 'a'"),
    ({"upstream": np.ones(6)}, ShapeError, r'upstream has shape \(6,\) .* reduction="none"'),
    ({"upstream": np.ones(5), "reduction": "none"}, ShapeError, r"upstream has shape \(5,\)"),
    ({"upstream": None}, OptionError, "upstream is None"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    REFUSED,
    ids=[f"{i}-{'+'.join(case[0])}" for i, case in enumerate(REFUSED)],
)
def test_arguments_that_do_not_fit_are_refused_with_what_to_do(arguments, error, text):
    arguments = {"logits": Z, "targets": T} | arguments
    if isinstance(arguments["targets"], list) and isinstance(arguments["targets"][0], int):
        arguments["targets"] = np.array(arguments["targets"])
    ways.skip_unless_moved(*arguments.values())
    logits, targets = arguments.pop("logits"), arguments.pop("targets")
    with pytest.raises(error, match=text) as caught:
        softmax_cross_entropy(logits, targets, **arguments)
    assert isinstance(caught.value, GpubackpropError)
    assert isinstance(caught.value, (ValueError, TypeError)), (
        "a NumPy user's except clause must work"
    )


def test_a_refused_call_leaves_logits_and_out_untouched():
    z = np.random.default_rng(0).normal(size=(6, 4))
    before, out = z.copy(), np.full_like(z, 7)
    for target in (z, out):
        with pytest.raises(TargetRangeError):
            softmax_cross_entropy(z, np.array([0, 1, 2, 3, 4, 0]), out=target)
    np.testing.assert_array_equal(z, before)
    np.testing.assert_array_equal(out, 7)


def test_an_out_of_range_label_is_found_in_the_last_of_many_rows():
    t = np.zeros(100_000, np.int32)
    t[-1] = 3
    with pytest.raises(TargetRangeError, match=r"targets\[99999\] is 3 .* 1 of 100000 rows"):
        softmax_cross_entropy(np.zeros((100_000, 3), np.float32), t)


def test_softmax_refuses_what_has_no_classes_or_no_rows():
    with pytest.raises(ShapeError, match="at least one class"):
        softmax(np.zeros((3, 0)))
    with pytest.raises(ShapeError, match=r"shape \(3,\)"):
        softmax(np.zeros(3))
    assert softmax(np.zeros((0, 3))).shape == (0, 3)
