"""Find and run what the Markdown files show: code blocks and commands."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gpubackprop.cli import COMMANDS, build_parser
from tests.cli_runs import ROOT

NOT_OURS = {"build", "dist", "runs", "shared"}
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>.*)$")
LAUNCHERS = ("mpirun", "srun", "torchrun")  # they start a program on several ranks
PROGRAMS = ("gpubackprop", "make", "pip", "pytest", "python", "python3")


class Block(NamedTuple):
    """A fenced or indented block of a document, from this line on."""

    document: str
    line: int
    language: str  # "python", "text", "" for commands; "indented"
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Return the commands of a block, one a line, without comments and continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := without_comment(line))]


@cache
def documents() -> tuple[str, ...]:
    """Return every Markdown file of the repository."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name[0] != "." and name not in NOT_OURS]
        paths = (Path(folder, name) for name in files if name.endswith(".md"))
        found += [path.relative_to(ROOT).as_posix() for path in paths]
    return tuple(sorted(found))


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(block for name in documents() for block in blocks_of(name, read(name)))


@cache
def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str, text: str) -> Iterator[Block]:
    """Return the fenced blocks, and those indented by four spaces after an empty line."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence:
            end = number + 1
            while end < len(lines) and lines[end].strip() != fence["fence"]:
                end += 1
            assert end < len(lines), f"{document}:{number + 1} opens a block that nothing closes"
            body = "\n".join(lines[number + 1 : end])
            yield Block(document, number + 1, fence["language"].strip(), body)
            number = end + 1
        elif lines[number].startswith("    ") and (not number or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            body = "\n".join(line[4:] for line in lines[number:end])
            yield Block(document, number + 1, "indented", body)
            number = end
        else:
            number += 1


def spoken_commands(document: str) -> list[str]:
    """Return the commands in the prose: `code` that begins with a program and goes on."""
    prose, text = read(document), ""
    inside = False
    for line in prose.splitlines():
        inside ^= bool(FENCE.match(line))
        text += "" if inside else line + "\n"
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return [span for span in spans if re.match(rf"({'|'.join(PROGRAMS)}) \S", span)]


def docstring_commands() -> dict[str, str]:
    """Return the indented commands in the docstrings of modules, without brackets, with their files."""
    found = {}
    for folder in ("gpubackprop", "benchmarks", "tools", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""
            for line in re.findall(rf"^ {{4}}((?:{'|'.join(PROGRAMS)}) [\w.-].*)$", text, re.M):
                command = re.sub(r"[\[\]]", "", re.split(r" {2,}", line)[0])
                found[command] = path.relative_to(ROOT).as_posix()
    return found


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


# -- what can be said of a command without running it --------------------------------------------


def why_not_a_command(command: str) -> str:
    """Say what is wrong with this line; "" if it can be run.

    It may name a program, module, file, target, extra or option that does not exist.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        return str(error)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0] in LAUNCHERS:
        words = words[next((k for k, word in enumerate(words) if word in PROGRAMS), 0) :]
    if not words or words[0] not in PROGRAMS:
        return f"{words[:1]} is none of {', '.join(PROGRAMS)}"
    marks = {"|", ">", "<", "&&", "||", ";", "&"} & set(words)
    if marks:
        return f"a line is one command, without {', '.join(marks)}"
    if words[0] == "gpubackprop":
        return _why_not_gpubackprop(words[1:])
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        wanted = {word for word in words[1:] if "=" not in word}
        return "" if wanted <= targets else f"the Makefile has no {', '.join(wanted - targets)}"
    if words[0] == "pip":
        return _why_not_pip(words[1:])
    return _why_not_python(words[1:] if words[0] != "pytest" else ["-m", "pytest", *words[1:]])


def _why_not_gpubackprop(arguments: list[str]) -> str:
    if arguments[0] not in COMMANDS:
        return f"there is no command {arguments[0]}"
    if len(arguments) == 1:
        return ""  # `gpubackprop predict` in prose only names the command
    with contextlib.redirect_stderr(None):
        try:
            build_parser(arguments).parse_args(arguments)
        except SystemExit:
            return "its parser does not take the options"
    return ""


def _why_not_pip(arguments: list[str]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if arguments[0] != "install":
        return "only pip install is known here"
    for word in arguments[1:]:
        match = re.fullmatch(r"(?:\.|gpubackprop)(?:\[(.+)\])?", word)
        if match is None:
            return f"{word} is not this package"
        unknown = set((match[1] or "").split(",")) - {"", *project["optional-dependencies"]}
        if unknown:
            return f"pyproject.toml has no extra {', '.join(unknown)}"
    return ""


def _why_not_python(arguments: list[str]) -> str:
    if arguments[0] == "-m":
        name, rest = arguments[1], arguments[2:]
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            return f"there is no module {name}"
        if spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
        if name == "pytest" or spec is None or spec.origin is None:
            return _missing_files(rest)
        source = Path(spec.origin).read_text(encoding="utf-8")
    else:
        if not (ROOT / arguments[0]).is_file():
            return f"there is no file {arguments[0]}"
        source, rest = (ROOT / arguments[0]).read_text(encoding="utf-8"), arguments[1:]
    unknown = [word for word in rest if word.startswith("--") and f'"{word}"' not in source]
    return f"no option {', '.join(unknown)} in its source" if unknown else _missing_files(rest)


def _missing_files(arguments: list[str]) -> str:
    """Return files in this repository that are named and absent; patterns must match one."""
    named = [word for word in arguments if re.search(r"^[\w*/-]+(\.py|\.csv)$", word)]
    absent = [word for word in named if not list(ROOT.glob(word))]
    return f"there is no {', '.join(absent)}" if absent else ""


def command_line(command: str) -> list[str]:
    """Return the command as a process of this interpreter runs it."""
    words = shlex.split(command)
    return [sys.executable if word in ("python", "python3") else word for word in words]
