"""A page in headless Chromium, driven over its debugging pipe: no port, no driver to install.

with browser() as tab:
    tab.open(Path("data/eval/report.html"))
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

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Tab:
    """One open page.

    `requests` are the addresses it requested, `faults` what its console or the browser reported.
    """

    def __init__(self, reader: int, writer: int):
        self._reader, self._writer, self._buffer = reader, writer, b""
        self._last_id = 0
        self._session: dict[str, str] = {}
        self._events: set[str] = set()
        self._target: str | None = None
        self.url, self.requests, self.faults = "", [], []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params} | self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != self._last_id:
            pass
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def open(self, path: Path, width: int = 1280, height: int = 900, scripts: bool = True) -> None:
        """Load `path` in a new tab of that size and wait until it is loaded."""
        self.url, self.requests, self.faults = path.resolve().as_uri(), [], []
        old, self._session = self._target, {}
        self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self.call("Target.closeTarget", targetId=old)
        attached = self.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._events.clear()
        self.call("Page.navigate", url=self.url)
        while "Page.loadEventFired" not in self._events:
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
        """The value of `script`, as JSON."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, f"{script}: {reply['exceptionDetails']}"
        return reply["result"].get("value")

    def key(self, name: str, text: str = "") -> None:
        """Press and release a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}.get(name, ord(name[0].upper()))
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def _read(self) -> dict[str, Any]:
        """The next message; its requests and faults are recorded."""
        while b"\0" not in self._buffer:
            data = os.read(self._reader, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        method, params = message.get("method", ""), message.get("params", {})
        self._events.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.faults.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.faults.append(json.dumps(params["args"]))
        return message


@contextmanager
def browser() -> Iterator[Tab]:
    """A running Chromium with nothing open yet; `Tab.open` opens a page in it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The ends of the pipe must be 3 and 4 in the child; the shell moves them there.
        script = f'exec "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
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
            time.sleep(0.1)  # until its child processes release the profile
