"""stdout and stderr of any encoding: a name that they cannot encode is no traceback.

Text for people keeps the stream's encoding, and what it lacks is escaped (``s\\xe9tosa``). Data are
the same bytes wherever they go: CSV is UTF-8 in a file and in a pipe, JSON escapes what is not
ASCII where stdout is not UTF-8.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Within, stdout and stderr escape the characters that they cannot encode.

    A stream that the process was started without (``>&-``) takes everything and keeps nothing.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
                stack.callback(setattr, sys, name, None)
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(_restore, stream, stream.errors or "strict")
                stream.reconfigure(errors="backslashreplace")
        yield


def _restore(stream: io.TextIOWrapper, errors: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it is closed, or its disk is full: told before
        stream.reconfigure(errors=errors)


@contextlib.contextmanager
def csv_stdout() -> Iterator[IO[str]]:
    """stdout for a table: in a pipe or a file UTF-8 and "\\n", as in a file that we name."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or stdout.isatty():
        yield stdout
        return
    stdout.flush()
    text = io.TextIOWrapper(stdout.buffer, "utf-8", errors="backslashreplace", newline="")
    try:
        yield text
        text.flush()
    finally:
        with contextlib.suppress(OSError):  # what could not be flushed is told by the error above
            text.detach()


def stdout_is_utf8() -> bool:
    """Whether all of JSON can be printed as it is; True for a stream that is no file."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"


def from_shell(text: str) -> str:
    """A typed name as a UTF-8 file has it, also where Python takes the shell for ASCII."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
