"""A headless Chromium, driven by the DevTools protocol over a pair of pipes."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Browser:
    """One page. `complaints`: what it wrote to its console, and the errors of its scripts."""

    def __init__(self, *, write: int, read: int) -> None:
        self._write, self._read, self._numbers, self._rest = write, read, itertools.count(1), b""
        self.complaints, self._loads, self._session = list[str](), 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def open(self, url: str, *, width: int, dark: bool = False, media: str = "") -> None:
        """Load the page anew at this width. `media`: print shows on the screen what is printed."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")
        self._until_loaded()
        self.call("Page.navigate", url=url)
        self._until_loaded()

    def value(self, expression: str) -> Any:
        """What this JavaScript gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _until_loaded(self) -> None:
        while not self._loads:
            self._receive()
        self._loads -= 1

    def _receive(self) -> dict[str, Any]:
        parts = [self._rest]
        while b"\0" not in parts[-1]:
            parts.append(os.read(self._read, 1 << 16))
            assert parts[-1], "the browser has ended"
        data, _, self._rest = b"".join(parts).partition(b"\0")
        message: dict[str, Any] = json.loads(data)
        match message.get("method"):
            case "Page.loadEventFired":
                self._loads += 1
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(message["params"]))
        return message


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser with a profile of its own; it ends with the block."""
    (to_read, write), (read, to_write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        with subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), *ARGUMENTS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(to_read)
            os.close(to_write)
            try:
                yield Browser(write=write, read=read)
            finally:
                process.kill()
