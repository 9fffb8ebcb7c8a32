"""A page in headless Chromium, driven over the browser's debugging pipe (no port, no driver to install).

with page(Path("data/eval/report.html")) as tab:
    tab.value("document.title")
    assert tab.faults == [] and tab.requests == [tab.url]
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"]


class Tab:
    """One open page: `requests` are all addresses it asked for, `faults` all that its console and the browser complain of."""

    def __init__(self, reader: int, writer: int):
        self._reader, self._writer, self._rest, self._last, self._session = (
            reader,
            writer,
            b"",
            0,
            {},
        )
        self._done: set[str] = set()
        self._target: str | None = None
        self.url, self.requests, self.faults = "", [], []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while (told := self._read()).get("id") != self._last:
            pass
        assert "error" not in told, f"{method}: {told['error']}"
        return told["result"]

    def open(self, path: Path, width: int = 1280, height: int = 900, scripts: bool = True) -> None:
        """Load `path` in a fresh tab of that size and wait until it is there."""
        self.url, self.requests, self.faults = path.resolve().as_uri(), [], []
        old, self._session = self._target, {}
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self.call("Target.closeTarget", targetId=old)
        self._session = {
            "sessionId": self.call("Target.attachToTarget", targetId=self._target, flatten=True)[
                "sessionId"
            ]
        }
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._done.clear()
        self.call("Page.navigate", url=self.url)
        while "Page.loadEventFired" not in self._done:
            self._read()
        self.call("Emulation.setScriptExecutionDisabled", value=False)

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def value(self, script: str) -> Any:
        """What `script` evaluates to, as JSON."""
        told = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, f"{script}: {told['exceptionDetails']}"
        return told["result"].get("value")

    def key(self, name: str, text: str = "") -> None:
        """Press and release a key as a person would."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}.get(name, ord(name[0].upper()))
        told = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **told, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def _read(self) -> dict[str, Any]:
        """The next message; what it tells of requests and faults is kept."""
        while b"\0" not in self._rest:
            got = os.read(self._reader, 1 << 20)
            assert got, "the browser has ended"
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(line)
        method, params = told.get("method", ""), told.get("params", {})
        self._done.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.faults.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.faults.append(json.dumps(params["args"]))
        return told


@contextmanager
def browser() -> Iterator[Tab]:
    """A running Chromium with nothing open yet; `Tab.open` opens a page in it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The pipe's ends must be 3 and 4 in the child: the shell puts them there.
        script = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser[0])
        os.close(from_browser[1])
        tab = Tab(from_browser[0], to_browser[1])
        try:
            yield tab
            tab._session = {}
            tab.call("Browser.close")
            process.wait(20)
        finally:
            process.kill()
            process.wait(20)
            os.close(from_browser[0])
            os.close(to_browser[1])
            time.sleep(0.1)  # its helpers let go of the profile
