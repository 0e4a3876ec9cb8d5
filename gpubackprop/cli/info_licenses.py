"""``gpubackprop info --licenses``: the licences of the library and of what it is installed with."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any

import gpubackprop
from gpubackprop.cli.common import Say, count
from gpubackprop.errors import OptionError

NOT_SAID = "NOASSERTION"  # SPDX 2.3, annex D: nothing is claimed
# What a package without the field License-Expression may say in License, and in a classifier. A
# classifier such as "BSD License" fits several licences, so it is not here.
IDENTIFIERS = frozenset({
    "0BSD", "AND", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MPL-2.0",
    "OR", "PSF-2.0", "Unlicense", "Zlib",
})  # fmt: skip
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


@dataclass(frozen=True)
class Licensed:
    """A package and its licence.

    Attributes
    ----------
    name : str
        As it is installed.
    version : str
        Of what is installed.
    license : str
        An SPDX expression, or `NOT_SAID` if its metadata are not exact.
    says : str
        What its metadata say instead of an SPDX expression; "" if they have one.
    """

    name: str
    version: str
    license: str
    says: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--licenses", action="store_true",
        help="of this library and of the packages that it may use; with --json as SPDX 2.3",
    )  # fmt: skip


def show(args: argparse.Namespace) -> int:
    say, found = Say(args.json), [licensed(one) for one in installed()]
    width = max(len(f"{one.name} {one.version}") for one in found) + 2
    for one in found:
        says = f' (its metadata say: "{one.says}")' if one.says else ""
        say.line(f"{f'{one.name} {one.version}':<{width}}{one.license}{says}")
    unclear = sum(one.license == NOT_SAID for one in found)
    say.line()
    say.line(f"{count(len(found), 'package')}, {unclear} of them without an exact SPDX licence.")
    say.object(document(found))
    return 0


def installed(name: str = "gpubackprop") -> list[Distribution]:
    """Return a package, then what is installed of its requirements and extras, and of theirs.

    Parameters
    ----------
    name : str
        The package.

    Returns
    -------
    list of Distribution
        The package first, the others by name.

    Raises
    ------
    OptionError
        The package itself is not installed.
    """
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(key)
        except PackageNotFoundError:  # an extra that nobody asked for
            continue
        waiting += _requirements(found[key], extras=len(found) == 1)
    if not found:
        raise OptionError(
            f"{name} itself is not installed, so nobody says what it needs; run: pip install ."
        )
    first, *others = found
    return [found[key] for key in (first, *sorted(others))]


def _requirements(one: Distribution, *, extras: bool) -> Iterator[str]:
    for requirement in one.requires or ():
        named = re.match(r"[\w.-]+", requirement)
        if named and (extras or not re.search(r"extra\s*==", requirement)):
            yield named[0]


def licensed(one: Distribution) -> Licensed:
    """Read a package's licence from its metadata, in the order of their exactness."""
    data: Any = one.metadata
    stated, classifiers = data.get("License") or "", []
    for classifier in data.get_all("Classifier") or ():
        if classifier.startswith("License :: "):
            classifiers.append(classifier.rsplit(" :: ", 1)[1])
    exact = data.get("License-Expression")
    if not exact and _is_expression(stated):
        exact = stated
    if not exact and len(classifiers) == 1:
        exact = CLASSIFIERS.get(classifiers[0])
    line = stated.strip().splitlines()[0][:60] if stated.strip() else ""
    says = "" if exact else ", ".join(classifiers) or line or "nothing"
    return Licensed(data["Name"], one.version, exact or NOT_SAID, says)


def _is_expression(text: str) -> bool:
    words = text.replace("(", " ").replace(")", " ").split()
    return bool(words) and all(
        word in IDENTIFIERS or word.startswith("LicenseRef-") for word in words
    )


def document(found: list[Licensed]) -> dict[str, Any]:
    """Return an SPDX 2.3 document that describes the first package, with the others as its parts.

    Parameters
    ----------
    found : list of Licensed
        The packages.

    Returns
    -------
    dict
        What is to be written as JSON (SPDX 2.3, clauses 6, 7 and 11).
    """
    names = [f"SPDXRef-{re.sub('[^A-Za-z0-9.-]', '-', one.name)}" for one in found]
    version = gpubackprop.__version__
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"gpubackprop-{version}",
        "documentNamespace": f"urn:uuid:{uuid.uuid4()}",
        "creationInfo": {
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: gpubackprop-{version}"],
        },
        "packages": [
            {
                "name": one.name, "SPDXID": name, "versionInfo": one.version,
                "downloadLocation": NOT_SAID, "filesAnalyzed": False,
                "licenseConcluded": NOT_SAID, "licenseDeclared": one.license,
                "copyrightText": NOT_SAID,
                **({"licenseComments": f"its metadata say: {one.says}"} if one.says else {}),
            }
            for one, name in zip(found, names, strict=True)
        ],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT", "relatedSpdxElement": names[0],
                "relationshipType": "DESCRIBES",
            },
            *(
                {
                    "spdxElementId": names[0], "relatedSpdxElement": name,
                    "relationshipType": "DEPENDS_ON",
                }
                for name in names[1:]
            ),
        ],
    }  # fmt: skip
