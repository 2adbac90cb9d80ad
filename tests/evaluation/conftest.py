"""A real browser for the pages: headless Chromium, driven over a pair of pipes by its own protocol (CDP)."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60


class Browser:
    """One headless process; `open` makes a tab. Chromium reads commands from descriptor 3 and answers on 4, with a zero byte after each."""

    def __init__(self, program: str, *, profile: Path) -> None:
        theirs, ours = os.pipe()
        mine, answers = os.pipe()

        def connect() -> None:
            # Above what is meant, first: one of the pipes may itself be 3 or 4.
            high = os.dup2(theirs, 60), os.dup2(answers, 61)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-pipe",
        )
        self._process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(answers)
        self._to, self._from, self._rest, self._count = ours, mine, b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, *, session: str = "", **params: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, *, width: int = 1200, height: int = 900) -> "Tab":
        """A tab with a page of this disk, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        tab.call("Page.navigate", url=page.as_uri())
        tab.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return tab

    def close(self) -> None:
        """End the process."""
        os.close(self._to)
        os.close(self._from)
        self._process.kill()
        self._process.wait()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], PATIENCE)
            got = os.read(self._from, 2**16) if ready else b""
            assert got, "the browser no longer answers"
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


class Tab:
    """A page in a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of this tab."""
        return self._browser.call(method, session=self._session, **params)

    def run(self, expression: str) -> Any:
        """The JSON-able value of an expression; of a promise what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key of the keyboard, down and up."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Enter": 13}.get(key, 0),
                **text,
            )

    def mouse(self, kind: str, *, x: float, y: float, **more: Any) -> None:
        """A mouse event at a place of the window, in CSS pixels."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """What the console holds of this tab, and every request that went out of the page's own file."""
        self.run("1")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [] if url.startswith(("file:", "data:")) else [f"fetched {url[:100]}"]
            elif event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(json.dumps(params)[:2000])
        return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium or Chrome, if there is one."""
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    started = Browser(program, profile=tmp_path_factory.mktemp("browser"))
    yield started
    started.close()
