"""`MLP.trace`: what it prints of a network whose numbers are worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import MLP
from gpubackprop.errors import OptionError, ShapeError
from gpubackprop.losses import SoftmaxCrossEntropy


def by_hand() -> MLP:
    """W_1 = [1 2; 3 4], W_2 = [1 -1], all biases 0; relu and squared error."""
    network = MLP([2, 2, 1], "relu", output="linear", dtype="float64", initializer="zeros")
    network.W = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, -1.0]])]
    return network


def test_a_trace_holds_every_matrix_of_a_pass_worked_by_hand():
    steps = by_hand().trace([1.0, 1.0], 5.0).steps
    found = {name: m.tolist() for step in steps for name, m in step.matrices.items()}
    # h_1 = a_1 = (3, 7), yhat = -4, L = 81 / 2, delta_2 = -9, delta_1 = W_2^T delta_2
    assert found == {
        "W_1": [[1, 2], [3, 4]], "h_0": [1, 1], "b_1": [0, 0], "a_1": [3, 7], "h_1": [3, 7],
        "W_2": [[1, -1]], "b_2": [0], "a_2": [-4], "yhat": [-4], "t": [5], "delta_2": [-9],
        "grad_W_2": [[-27, -63]], "grad_b_2": [-9], "W_2^T": [[1], [-1]], "grad_h_1": [-9, 9],
        "delta_1": [-9, 9], "grad_W_1": [[-9, -9], [9, 9]], "grad_b_1": [-9, 9],
    }  # fmt: skip
    assert [step.formula for step in steps] == [
        "a_1 = W_1 h_0 + b_1,   h_1 = relu(a_1)",
        "a_2 = W_2 h_1 + b_2",
        "yhat = linear(a_2)",
        "L = 40.5 = SquaredError(), delta_2 = dL/da_2",
        "grad_W_2 = delta_2 h_1^T,   grad_b_2 = delta_2",
        "grad_h_1 = W_2^T delta_2,   delta_1 = grad_h_1 * relu'(a_1)",
        "grad_W_1 = delta_1 h_0^T,   grad_b_1 = delta_1",
    ]


def test_a_trace_prints_matrices_side_by_side_under_their_names():
    text = str(by_hand().trace([1.0, 1.0]))
    assert text.splitlines()[2:7] == [
        "a_1 = W_1 h_0 + b_1,   h_1 = relu(a_1)",
        "",
        "  W_1 (2, 2)    h_0 (2,)    b_1 (2,)    a_1 (2,)    h_1 (2,)",
        "        1  2           1           0           3           3",
        "        3  4           1           0           7           7",
    ]
    assert "delta" not in text


def test_softmax_cross_entropy_of_a_label_shows_yhat_minus_e_y():
    network = MLP([2, 4], initializer="zeros", dtype="float64")
    step = network.trace(np.ones(2), 2).steps[2]
    assert step.formula == "L = 1.38629 = -log yhat_y with y = 2,   delta_1 = yhat - e_y"
    np.testing.assert_allclose(
        step.matrices["yhat"] - step.matrices["e_y"], step.matrices["delta_1"]
    )
    assert step.matrices["delta_1"].tolist() == [0.25, 0.25, -0.75, 0.25]


@pytest.mark.parametrize(
    ("target", "loss"),
    [([0.1, 0.2, 0.3, 0.4], None), (1, SoftmaxCrossEntropy(label_smoothing=0.1))],
)
def test_another_loss_is_named_and_its_delta_is_that_of_gradients(target, loss):
    network, x = MLP([2, 4], dtype="float64"), np.ones(2)
    step = network.trace(x, target, loss).steps[2]
    assert "= SoftmaxCrossEntropy(" in step.formula
    wanted = network.gradients(x[None], np.array([target]), loss).output[0]
    np.testing.assert_array_equal(step.matrices["delta_1"], wanted)


def test_a_large_matrix_is_shown_by_its_ends_within_a_screen():
    text = str(MLP([784, 300, 10]).trace(np.ones(784), 3))
    assert max(map(len, text.splitlines())) < 200
    assert "W_1 (300, 784)" in text


def test_a_notebook_shows_the_text_escaped():
    page = by_hand().trace([1.0, 1.0])._repr_html_()
    assert page.startswith("<pre>Forward pass of one sample")
    assert "&#x27;relu&#x27;" in page


def test_more_than_one_sample_and_targets_that_do_not_fit_are_refused():
    network = by_hand()
    with pytest.raises(ShapeError, match=r"\(3, 2\) but trace shows one sample; pass x\[i\]"):
        network.trace(np.ones((3, 2)))
    with pytest.raises(ShapeError, match=r"wants \(N, 2\)"):
        network.trace(np.ones(3))
    with pytest.raises(ShapeError):
        network.trace(np.ones(2), [1.0, 2.0])
    with pytest.raises(OptionError, match="belongs to output"):
        network.trace(np.ones(2), 1.0, "poisson")
