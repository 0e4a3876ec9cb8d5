"""scikit-learn's estimator checks, as its documentation asks of every estimator."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpubackprop.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.slow  # together


# Few epochs, as scikit-learn's own run of these checks has them.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_every_estimator_check_passes(estimator, check):
    check(estimator)
