"""`gpubackprop info --licenses`: SPDX licences of what is installed, and no guess."""

from __future__ import annotations

import re
from email.message import Message
from importlib.metadata import Distribution
from typing import Any

import pytest

from gpubackprop.cli import info_licenses
from gpubackprop.cli.info_licenses import NOT_SAID, Licensed, licensed
from gpubackprop.errors import OptionError
from tests.cli_runs import ok


class Fake(Distribution):
    def __init__(self, name: str, requires: tuple[str, ...] = (), **fields: Any) -> None:
        self.message = Message()
        for key, values in {"Name": name, "Version": "1", **fields}.items():
            for value in values if isinstance(values, list) else [values]:
                self.message[key.replace("_", "-")] = value
        self.wanted = requires

    @property
    def metadata(self) -> Any:
        return self.message

    @property
    def version(self) -> str:
        return "1"

    @property
    def requires(self) -> Any:
        return list(self.wanted)

    def read_text(self, filename: str) -> None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


OSI = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("fields", "expression", "says"),
    [
        ({"License_Expression": "MPL-2.0 AND MIT", "License": "x"}, "MPL-2.0 AND MIT", ""),
        ({"License": "BSD-3-Clause OR (MIT AND LicenseRef-Own)"}, None, ""),
        ({"License": "LicenseRef-NVIDIA-Proprietary", "Classifier": "License :: Other"}, None, ""),
        ({"License": "MIT License", "Classifier": OSI + "MIT License"}, "MIT", ""),
        ({"Classifier": OSI + "BSD License"}, NOT_SAID, "BSD License"),
        (
            {"Classifier": [OSI + "MIT License", OSI + "Apache Software License"]},
            NOT_SAID, "MIT License, Apache Software License",
        ),
        ({"License": "Copyright (c) 2001 Somebody\nAll rights"}, NOT_SAID, "Copyright (c) 2001 Somebody"),
        ({}, NOT_SAID, "nothing"),
    ],
)  # fmt: skip
def test_a_licence_is_what_the_metadata_say_exactly_or_it_is_not_asserted(
    fields: dict[str, Any], expression: str | None, says: str
) -> None:
    wanted = fields["License"] if expression is None else expression
    assert licensed(Fake("a", **fields)) == Licensed("a", "1", wanted, says)


def test_what_is_installed_of_requirements_is_walked_and_of_extras_only_the_first_package_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {
        "top": Fake("top", ("Py_Yaml>=2", 'extra.one; extra == "more"', "none")),
        "py-yaml": Fake("Py_Yaml", ('hidden; extra=="test"', "top")),
        "extra-one": Fake("extra.one"),
        "hidden": Fake("hidden"),
    }

    def distribution(name: str) -> Distribution:
        if name not in there:
            raise info_licenses.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(info_licenses.importlib.metadata, "distribution", distribution)
    names = [one.metadata["Name"] for one in info_licenses.installed("top")]
    assert names == ["top", "extra.one", "Py_Yaml"]
    with pytest.raises(OptionError, match="none itself is not installed"):
        info_licenses.installed("none")


def test_the_command_prints_a_line_for_each_package_and_json_is_an_spdx_document() -> None:
    said = ok("info", "--licenses").out
    assert re.search(r"^gpubackprop \S+ +MIT$", said, re.M)
    assert re.search(r"^numpy \S+ +BSD-3-Clause", said, re.M)
    found = ok("info", "--licenses", "--json").json
    assert (found["spdxVersion"], found["dataLicense"]) == ("SPDX-2.3", "CC0-1.0")
    packages = {one["name"]: one for one in found["packages"]}
    assert packages["gpubackprop"]["licenseDeclared"] == "MIT"
    assert {"numpy", "safetensors", "tqdm", "narwhals"} <= set(packages)
    ids = [one["SPDXID"] for one in found["packages"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", one) for one in ids)
    ends = [one["relatedSpdxElement"] for one in found["relationships"]]
    assert ends == ids, "the document describes the first, which depends on the others"
