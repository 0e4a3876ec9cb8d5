"""stdout and stderr of any encoding: a name that they cannot encode gives no traceback.

Text for people keeps the stream's encoding, and characters that it lacks are escaped
(``s\\xe9tosa``). Data are the same bytes wherever they go: CSV is UTF-8 in a file and in a pipe.
JSON escapes characters outside ASCII if stdout is not UTF-8.
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
    """Escape characters that stdout and stderr cannot encode, within the context.

    If the process was started without a stream (``>&-``), what is written to it is dropped.
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
    with contextlib.suppress(OSError, ValueError):  # an error before told that it is closed or full
        stream.reconfigure(errors=errors)


@contextlib.contextmanager
def csv_stdout() -> Iterator[IO[str]]:
    """Give stdout for a table: a pipe or a file gets UTF-8 and "\\n", as a named file does."""
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
        with contextlib.suppress(OSError):  # the error above tells what could not be flushed
            text.detach()


def stdout_is_utf8() -> bool:
    """Return whether all of JSON can be printed as it is; True for a stream that is no file."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"


def from_shell(text: str) -> str:
    """Return a typed name as a UTF-8 file has it, even if Python takes it for ASCII."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
