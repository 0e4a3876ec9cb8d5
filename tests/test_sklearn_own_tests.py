"""scikit-learn's own tests of MLPClassifier and MLPRegressor, run against this package's."""

from __future__ import annotations

import pytest

from tests import sklearn_own_tests

pytestmark = pytest.mark.slow  # together

_MODULE = sklearn_own_tests.load()
globals().update(
    {
        name: value
        for name, value in vars(_MODULE).items()
        if name.startswith("test_") and name not in sklearn_own_tests.PRIVATE
    }
)


@pytest.fixture
def global_random_seed() -> int:
    """scikit-learn's conftest draws it; its own default is 42."""
    return 42


def test_every_test_of_scikit_learns_is_here_but_the_listed_ones():
    theirs = {name for name in vars(_MODULE) if name.startswith("test_")}
    assert theirs > set(sklearn_own_tests.PRIVATE)
    assert theirs - set(globals()) == set(sklearn_own_tests.PRIVATE)
    assert len(theirs) >= 40
