"""A program written for scikit-learn with the classes exchanged, in a context and from a shell."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import sklearn.neural_network as theirs
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import cross_val_score

import gpubackprop.sklearn as ours
from gpubackprop.sklearn import __main__, accelerate
from gpubackprop.sklearn.report import VARIABLE, Report
from tests.sklearn_pairs import digits, regression

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ROOT = Path(__file__).resolve().parents[1]
ORIGINAL = theirs.MLPClassifier
PARTIAL_FIT = vars(ORIGINAL)["partial_fit"]


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

    with accelerate() as report:
        made_before.fit(*digits(60))
        Own(4, max_iter=2).fit(*digits(60))
        made_before.partial_fit(*digits(30))
        assert not hasattr(made_before.set_params(solver="lbfgs"), "partial_fit")
    said = capsys.readouterr().err
    assert "MLPClassifier on scikit-learn itself: 2 fits of 30 x 64 to 60 x 64, 3 epochs" in said
    assert "Own on scikit-learn itself: 1 fit" in said
    assert "not seen: scikit-learn's own estimators in processes" in said
    assert "not seen" in str(Report())
    assert [row["epochs"] for row in report.rows] == [2, 2, 1]
    assert "fit" not in vars(ORIGINAL)
    assert vars(ORIGINAL)["partial_fit"] is PARTIAL_FIT


def test_a_pickled_estimator_of_scikit_learn_stays_one_inside_and_predicts_the_same():
    x, y = digits(60)
    before = fit(ORIGINAL)
    blob, original = pickle.dumps(before), type(before)
    with accelerate(verbose=False) as report:
        assert theirs.MLPClassifier is ours.MLPClassifier
        for model in (
            pickle.loads(blob),
            pickle.loads(pickle.dumps(before)),
            copy.deepcopy(before),
        ):
            assert type(model) is original
            np.testing.assert_array_equal(model.predict(x), before.predict(x))
            model.fit(x, y)
    assert {row["device"] for row in report.rows} == {"scikit-learn itself"}


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


def fitted_in_workers(estimator, jobs=2):
    x, y = digits(60)
    return cross_val_score(estimator, x, y, cv=2, n_jobs=jobs)


@pytest.mark.slow  # starts processes
def test_workers_that_outlive_a_context_report_to_the_next_one_and_fit_without_any():
    fitted_in_workers(ours.MLPClassifier(4, max_iter=2))  # the workers are older than all contexts
    reports = []
    for _ in range(2):
        with accelerate(verbose=False) as report:
            fitted_in_workers(theirs.MLPClassifier(4, max_iter=2))
            fitted_in_workers(BaggingClassifier(theirs.MLPClassifier(4, max_iter=2), 1))  # clones
        reports.append(report)
    assert [len(report.rows) for report in reports] == [4, 4]
    assert os.getpid() not in {row["process"] for row in report.rows}
    fitted_in_workers(ours.MLPClassifier(4, max_iter=2))


def test_a_report_that_is_gone_fails_no_fit_and_a_model_file_of_before_takes_none_away(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "fits"))
    fit(ours.MLPClassifier)
    with accelerate(verbose=False):
        blob = pickle.dumps(fit(ours.MLPClassifier))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "fits"))
    model = pickle.loads(blob)
    fit(ours.MLPClassifier)
    assert len((tmp_path / "fits").read_text().splitlines()) == 1
    assert "_report" not in vars(model)


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


def test_the_program_has_its_arguments_and_file_as_python_gives_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:], __file__, sys.path[0])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in (["program.py"], ["-m", "program"]):
        monkeypatch.setattr(sys, "argv", ["gpubackprop.sklearn", *name, "--", "-m", "--help"])
        __main__.main()
        said = capsys.readouterr().out
        assert said.startswith(f"['--', '-m', '--help'] {tmp_path / 'program.py'} ")
        assert name[0] == "-m" or said.endswith(f" {tmp_path}\n")


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
