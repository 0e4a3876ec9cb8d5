"""The raw results of a run: machine, versions, settings and rows, as one JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpubackprop import __version__
from gpubackprop.backends.cupy.library import import_cupy
from gpubackprop.backends.host import probe_cpu
from gpubackprop.bench.nvml import Meter
from gpubackprop.bench.providers import package_versions, reference
from gpubackprop.bench.rows import Row, summarise
from gpubackprop.bench.timers import number
from gpubackprop.errors import DataError
from gpubackprop.tensorfile import write_atomically

FORMAT = 2
_NEEDED = ("date", "commit", "device", "gpu", "cpu", "versions", "settings", "limits", "left_out")
_TABLES = ("cpu", "versions", "settings", "limits")
ROOT = Path(__file__).resolve().parents[2]
_GPU_QUERY = (
    "index,pci.bus_id,name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,temperature.gpu,memory.total,memory.used,ecc.mode.current"
)


def new(device: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a record without rows. Our kernels run on `device`: "cpu" or "cuda:N"."""
    cpu = probe_cpu()
    now = datetime.datetime.now(datetime.UTC)
    return {
        "format": FORMAT,
        "date": now.date().isoformat(),
        "time": now.strftime("%H:%M:%SZ"),
        "commit": commit(),
        "device": device,
        **_card(device),
        "cpu": {
            "model": cpu.model, "cores": cpu.cores, "machine_cores": cpu.machine_cores,
            "blas": f"{cpu.blas} {cpu.blas_version}", "mhz_as_found": _megahertz(),
        },
        "load_before": [round(load, 2) for load in os.getloadavg()]
        if hasattr(os, "getloadavg") else None,
        "busy_before": busy_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"gpubackprop": __version__, **package_versions()},
        "settings": settings,
        "limits": {},
        "left_out": [],
        "rows": [],
    }  # fmt: skip


def busy_cores(stat: Path = Path("/proc/stat"), seconds: float = 1.0) -> float | None:
    """Return how many cores worked meanwhile; None on a system without /proc/stat (man 5 proc)."""

    def ticks() -> tuple[int, int]:
        first = stat.read_text().splitlines()[0].split()[1:]
        user, nice, system, idle, waiting, *others = map(int, first)
        return user + nice + system + sum(others[:3]), idle + waiting

    try:
        before = ticks()
        time.sleep(seconds)
        work, idle = (now - then for now, then in zip(ticks(), before, strict=True))
        return round(work / (work + idle) * probe_cpu().machine_cores, 2)
    except (OSError, ValueError, ZeroDivisionError):
        return None


COMPUTING = ("gpubackprop", "kernels", "benchmarks", ":!benchmarks/results", "pyproject.toml")


def commit() -> str:
    """Return the checkout's commit; "" if there is no checkout.

    It ends with "-changed" if files differ that compute. A run renews tables and pictures, which
    must not mark the next one.
    """
    if not (ROOT / ".git").exists():
        return ""
    found = _output("git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD").strip()
    tracked = ("status", "--porcelain", "--untracked-files=no", "--", *COMPUTING)
    changed = _output("git", "-C", str(ROOT), *tracked).strip()
    return found + ("-changed" if found and changed else "")


def gpu(device: str) -> dict[str, str] | None:
    """Return what nvidia-smi says about that card, with its clocks now; None on a CPU."""
    if device == "cpu":
        return None
    text = _output("nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader")
    cards = [dict(zip(_GPU_QUERY.split(","), line.split(", "), strict=False))
             for line in text.splitlines()]  # fmt: skip
    bus = bus_id(device)
    mine = (card for card in cards if bus and card.get("pci.bus_id", "").lower().endswith(bus))
    return next(mine, {"name": "unknown card"})


def _card(device: str) -> dict[str, Any]:
    """Return what nvidia-smi and NVML say about the card, and why NVML reads no clocks."""
    found: dict[str, Any] | None = gpu(device)
    if found is None:
        return {"gpu": None}
    meter = Meter(bus_id(device))
    return {"gpu": meter.facts() | found, "no_clocks": meter.why}


def bus_id(device: str) -> str:
    """Return the PCI address of the card; "" if it is not known, and on a CPU.

    nvidia-smi numbers all cards. CUDA numbers the cards of CUDA_VISIBLE_DEVICES in its own order.
    """
    if device == "cpu":
        return ""
    try:
        return str(import_cupy().cuda.Device(number(device)).pci_bus_id).lower()
    except Exception:  # without a GPU, libraries raise different errors
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _megahertz() -> float | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"cpu MHz\s*:\s*([\d.]+)", text)
    return float(found[1]) if found else None


def card(record: dict[str, Any]) -> str:
    """Return the folder of the machine's results, e.g. nvidia-h200, cpu-amd-epyc-2-cores."""
    if record["device"] != "cpu":
        return _slug((record["gpu"] or {}).get("name", "unknown card"))
    return _slug(f"cpu {record['cpu']['model']} {record['cpu']['cores']} cores")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def default_path(record: dict[str, Any], results: Path) -> Path:
    """Return <results>/<card>/<date>-<commit>.json."""
    return results / card(record) / f"{record['date']}-{record['commit'] or 'installed'}.json"


def load(path: Path) -> dict[str, Any]:
    """Read a record of this format; every row gets the `run` that measured it.

    Raises
    ------
    DataError : the file is not such a record.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path} is no result of these benchmarks (format {FORMAT} is wanted)")
    absent = [key for key in _NEEDED if key not in values]
    wrong = [key for key in _TABLES if key in values and not isinstance(values[key], dict)]
    if wrong:
        raise DataError(f"{path} is no whole result: {', '.join(wrong)} should be objects")
    if absent or not values.keys() & {"cases", "rows"}:
        raise DataError(f"{path} is no whole result: it lacks {', '.join(absent) or 'cases'}")
    try:
        _renew(values)
        if "cases" in values:
            values["rows"] = [row for case in values.pop("cases") for row in _unpacked(case)]
        values["rows"] = stamped(values)
        rows_of(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} has a row that is none ({type(error).__name__}: {error}); write it again with "
            "gpubackprop bench --json"
        ) from None
    return values


def _renew(values: dict[str, Any]) -> None:
    """Replace an older format's word for a provider by today's."""
    for case in (*values.get("cases", ()), *values.get("rows", ())):
        for old, new in _OLD_WORDS.items():
            if old in case:
                case[new] = case.pop(old)
        for row in case.get("providers", ()):
            if "contestant" in row:
                row["provider"] = row.pop("contestant")


_OLD_WORDS = {"contestants": "providers", "contestant": "provider"}


def run_name(record: dict[str, Any]) -> str:
    """Return date and commit of a run."""
    return f"{record['date']} {record['commit']}".strip()


def stamped(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the record's rows; a row that names no run gets this run."""
    return [{"run": run_name(record), **row} for row in record["rows"]]


def _unpacked(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one case of a file; the percentiles are computed from the rounds again."""
    shared = {key: value for key, value in case.items() if key != "providers"}
    rows = {row["provider"]: _row(shared | row) for row in case["providers"]}
    summarise(rows, reference(rows, shared["device"]))
    return [row.json() for row in rows.values()]


def rows_of(record: dict[str, Any]) -> list[Row]:
    return [_row(row) for row in record["rows"]]


def _row(values: dict[str, Any]) -> Row:
    """Make a row; fields of a later version are ignored."""
    return Row(**{key: value for key, value in values.items() if key in _FIELDS})


_FIELDS = {one.name for one in fields(Row)}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Add to `new` the cases of `old` that it did not measure; each row names its run."""
    measured = {_key(row) for row in new["rows"]}
    rows = [row for row in stamped(old) if _key(row) not in measured] + stamped(new)
    left = [name for name in old["left_out"] if name not in new["left_out"]]
    done = {f"{row['case']} on {row['device']}" for row in rows}
    left = [name for name in [*left, *new["left_out"]] if name not in done]
    runs = [*old.get("earlier_runs", [])]
    this = {
        key: old[key]
        for key in ("date", "time", "commit", "settings", "versions", "load_before", "busy_before")
        if key in old
    }
    return new | {
        "rows": rows, "left_out": left, "limits": old["limits"] | new["limits"],
        "earlier_runs": [*runs, this],
    }  # fmt: skip


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["case"], row["device"], row["threads"]


SHARED = (  # fields that all providers of a case share
    "case", "op", "device", "threads", "limit", "bytes", "flops", "run",
)  # fmt: skip
DERIVED = (  # fields that are computed from the rounds
    "p20", "p80", "ratio_p20", "ratio_p80", "share_p20", "share_p80", "dropped",
)  # fmt: skip


def write(path: Path, record: dict[str, Any]) -> None:
    """Write cases with their providers, one line each: files stay small and their diffs readable.

    `load` gives the rows back.
    """
    head = {key: value for key, value in record.items() if key != "rows"}
    text = json.dumps(head, indent=1, allow_nan=False)[:-2]
    groups: dict[str, list[str]] = {}
    for row in record["rows"]:
        shared = json.dumps({key: row[key] for key in SHARED if key in row})
        dropped = SHARED + (DERIVED if row.get("rounds") else ())
        own = {key: value for key, value in row.items() if key not in dropped}
        groups.setdefault(shared, []).append(
            json.dumps(own, separators=(",", ":"), allow_nan=False)
        )
    cases = [
        f'  {shared[:-1]}, "providers": [\n   ' + ",\n   ".join(rows) + "]}"
        for shared, rows in groups.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(cases)
    write_atomically(path, f'{text},\n "cases": [\n{body}\n ]\n}}\n'.encode())
