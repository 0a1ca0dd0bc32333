"""A page in headless Chromium, driven over its debugging pipe: no port, no library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}


class Browser:
    """One tab. `problems`: what its console reported as an error or a warning, and requests other than of files."""

    def __init__(self, to: int, back: int) -> None:
        self.problems: list[str] = []
        self._to, self._back, self._kept, self._number = to, back, b"", 0
        self._told: list[dict[str, Any]] = []
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def open(self, page: Path, *, width: int = 1400, height: int = 1000, dark: bool = False) -> float:
        """Open a file and wait until its script says that all is drawn; seconds that took."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        since = time.monotonic()
        self.call("Page.navigate", url=page.resolve().as_uri())
        until = since + 60
        while self.js("document.documentElement?.dataset.drawn") != "yes":
            assert time.monotonic() < until, "nothing was drawn"
            time.sleep(0.02)
        return time.monotonic() - since

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """A key on the keyboard, down and up."""
        code, text = _KEYS[key]
        what = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def click(self, selector: str) -> None:
        """The mouse, on the middle of an element."""
        found = json.dumps(selector)
        self.js(f"document.querySelector({found}).scrollIntoView({{block: 'center'}})")
        box = self.js(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector({found}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, to: Path) -> None:
        """All of the page as a PNG."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        to.write_bytes(base64.b64decode(told["data"]))

    def pdf(self, to: Path) -> None:
        """As it is printed."""
        told = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        to.write_bytes(base64.b64decode(told["data"]))

    def _note(self, told: dict[str, Any]) -> None:
        match told.get("method"):
            case "Log.entryAdded":
                entry = told["params"]["entry"]
                if entry["level"] in ("error", "warning"):
                    self.problems.append(f"{entry['level']}: {entry['text']}")
            case "Runtime.consoleAPICalled" if told["params"]["type"] in ("error", "warning", "assert"):
                said = " ".join(str(a.get("value", a.get("description"))) for a in told["params"]["args"])
                self.problems.append(f"{told['params']['type']}: {said}")
            case "Runtime.exceptionThrown":
                self.problems.append(str(told["params"]["exceptionDetails"]))
            case "Network.requestWillBeSent":
                url = told["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    self.problems.append(f"request: {url}")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._kept:
            ready, _, _ = select.select([self._back], [], [], 90)
            assert ready, "chromium does not answer"
            more = os.read(self._back, 1 << 20)
            assert more, "chromium has ended"
            self._kept += more
        one, self._kept = self._kept.split(b"\0", 1)
        found: dict[str, Any] = json.loads(one)
        return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium for a while, with a profile of its own."""
    assert CHROMIUM is not None
    commands, to = os.pipe()
    back, answers = os.pipe()
    # Chromium reads from 3 and answers on 4; a shell puts the pipes there, through numbers that are neither.
    pipes = f'exec 8<&{commands} 9>&{answers}; exec "$@" 3<&8 4>&9 8<&- 9>&-'
    with tempfile.TemporaryDirectory(prefix="faultreplay-chromium-", ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        options += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        process = subprocess.Popen(
            ["bash", "-c", pipes, "chromium", CHROMIUM, *options],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        try:
            yield Browser(to, back)
        finally:
            os.close(to)
            os.close(back)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):  # and what it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
