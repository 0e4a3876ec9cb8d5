"""A program written for scikit-learn with the classes exchanged, in a context and from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import sklearn.neural_network as theirs

import gpubackprop.sklearn as ours
from gpubackprop.sklearn import accelerate
from gpubackprop.sklearn.report import VARIABLE
from tests.sklearn_pairs import digits, regression

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ROOT = Path(__file__).resolve().parents[1]
ORIGINAL = theirs.MLPClassifier


def fit(cls, **options):
    x, y = digits(60)
    return cls(4, max_iter=2, random_state=0, **options).fit(x, y)


def test_modules_have_the_exchanged_classes_inside_and_their_own_afterwards(capsys):
    user = types.ModuleType("a_users_module")
    user.Net, user.Kept = theirs.MLPRegressor, ours.MLPRegressor
    sys.modules[user.__name__] = user
    try:
        with accelerate() as report:
            from sklearn.neural_network import MLPClassifier

            assert MLPClassifier is theirs.MLPClassifier is ours.MLPClassifier
            assert user.Net is ours.MLPRegressor
            fit(MLPClassifier)
            user.Net("squared_error", 4, max_iter=3, tol=0).fit(*regression())
            fit(MLPClassifier)
        assert user.Kept is ours.MLPRegressor
        assert user.Net is theirs.MLPRegressor
    finally:
        del sys.modules[user.__name__]
    assert theirs.MLPClassifier is ORIGINAL
    assert ours.MLPClassifier is not ORIGINAL
    assert [row["estimator"] for row in report.rows] == [
        "MLPClassifier", "MLPRegressor", "MLPClassifier"
    ]  # fmt: skip
    assert [row["epochs"] for row in report.rows] == [2, 3, 2]
    said = capsys.readouterr().err
    assert "MLPClassifier on cpu: 2 fits of 60 x 64, 4 epochs" in said
    assert "MLPRegressor on cpu: 1 fit of 150 x 8, 3 epochs" in said
    assert VARIABLE not in os.environ


def test_a_fit_of_scikit_learns_own_code_is_reported_as_such(capsys):
    made_before = ORIGINAL(4, max_iter=2)

    class Own(ORIGINAL):
        pass

    with accelerate():
        made_before.fit(*digits(60))
        Own(4, max_iter=2).fit(*digits(60))
    said = capsys.readouterr().err
    assert "MLPClassifier on scikit-learn itself: 1 fit" in said
    assert "Own on scikit-learn itself: 1 fit" in said
    assert "fit" not in vars(ORIGINAL)


def test_names_are_restored_and_the_report_is_printed_after_an_error(capsys):
    def program():
        with accelerate():
            fit(theirs.MLPClassifier)
            raise LookupError

    with pytest.raises(LookupError):
        program()
    assert theirs.MLPClassifier is ORIGINAL
    assert "1 fit" in capsys.readouterr().err


def test_contexts_nest_and_each_reports_its_own_fits():
    with accelerate(verbose=False) as outer:
        fit(theirs.MLPClassifier)
        with accelerate(verbose=False) as inner:
            fit(theirs.MLPClassifier)
        fit(theirs.MLPClassifier)
    assert (len(outer.rows), len(inner.rows)) == (2, 1)
    assert theirs.MLPClassifier is ORIGINAL


SCRIPT = """
import sys
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
import helper
x, y = load_digits(return_X_y=True)
if __name__ == "__main__":
    model = MLPClassifier(4, max_iter=2, random_state=0)
    jobs = int(sys.argv[2])
    print(sys.argv[1], helper.NAME, cross_val_score(model, x[:90], y[:90], cv=2, n_jobs=jobs).shape)
"""


def run(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "gpubackprop.sklearn", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow  # starts interpreters
def test_a_script_runs_unchanged_with_its_arguments_and_reports_the_fits_of_its_processes(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("NAME = 'beside the script'")
    done = run(str(tmp_path / "program.py"), "--jobs", "2", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "--jobs beside the script (2,)\n"
    assert "MLPClassifier on cpu: 2 fits of 45 x 64, 4 epochs" in done.stderr
    as_module = run("-m", "program", "--jobs", "1", cwd=tmp_path)
    assert as_module.returncode == 0, as_module.stderr
    assert "2 fits of 45 x 64, 4 epochs" in as_module.stderr


@pytest.mark.slow
def test_an_error_of_the_script_and_a_missing_file_give_their_exit_codes(tmp_path):
    (tmp_path / "program.py").write_text("raise SystemExit(3)")
    assert run("program.py", cwd=tmp_path).returncode == 3
    missing = run("nothing.py", cwd=tmp_path)
    assert missing.returncode == 2
    assert "there is no file nothing.py; for a module write -m" in missing.stderr


def test_predictions_inside_are_those_of_the_exchanged_class():
    with accelerate(verbose=False):
        model = fit(theirs.MLPClassifier)
    np.testing.assert_array_equal(
        model.predict(digits(60)[0]), fit(ORIGINAL).predict(digits(60)[0])
    )
