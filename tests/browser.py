"""Chromium without a window, driven over its own pipe: a page's errors, size and values.

The DevTools protocol goes through two inherited file descriptors, so that no driver, no port and no
package is needed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing() -> str:
    """Return why no browser can be started; "" if one is there."""
    return "" if _program() else f"none of {', '.join(NAMES)} is installed"


def _program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser with one page, to be used in a `with` statement."""

    def __init__(self, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            _program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-extensions",
            "--disable-background-networking", "--disable-dev-shm-usage",
            "--allow-file-access-from-files", "about:blank",
        ]  # fmt: skip

        def descriptors() -> None:  # the browser reads from 3 and writes to 4
            copies = [os.dup(to_read), os.dup(to_write)]
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        self._process = subprocess.Popen(
            [str(part) for part in command], preexec_fn=descriptors, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, page: Path | str, width: int, height: int = 900) -> list[str]:
        """Open a page in a window of that size and return its errors, and files not found."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone,
            deviceScaleFactor=1,
        )  # fmt: skip
        self.events.clear()
        self.call("Page.navigate", url=Path(page).resolve().as_uri())
        end = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(end - time.monotonic()))
        self.evaluate("new Promise(done => setTimeout(done, 50))")
        return [text for event in self.events if (text := _wrong(event))]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


def _wrong(event: dict[str, Any]) -> str:
    params = event["params"]
    match event["method"]:
        case "Runtime.exceptionThrown":
            return f"exception: {params['exceptionDetails'].get('text')}"
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
            return f"console: {params['args']}"
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            return f"log: {params['entry']['text']} {params['entry'].get('url', '')}"
        case "Network.loadingFailed" if not params.get("canceled"):
            return f"not loaded: {params['errorText']}"
    return ""
