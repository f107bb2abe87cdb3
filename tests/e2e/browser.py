"""Debian's Chromium, controlled through its driver by WebDriver's JSON."""

import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium")
MISSING = None if DRIVER and BROWSER else "needs Chromium and its driver: apt-get install chromium chromium-driver"

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of an element's reference according to the WebDriver standard."""


class Browser:
    """One browser. Lookups wait some seconds for their element."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def script(self, text: str, *arguments: Any) -> Any:
        """Runs JavaScript and returns its result."""
        return self._post("execute/sync", script=text, args=list(arguments))

    def script_until_done(self, text: str, *arguments: Any) -> Any:
        """Runs JavaScript and returns what it passes to its last argument, a function."""
        return self._post("execute/async", script=text, args=list(arguments))

    def click(self, selector: str) -> None:
        self._post(f"element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self._post(f"element/{self._find(selector)}/value", text=text)

    def press(self, keys: str) -> None:
        """Types into the focused element."""
        focused = self._session.get("element/active").json()["value"][_ELEMENT]
        self._post(f"element/{focused}/value", text=keys)

    def text(self, selector: str) -> str:
        """Returns the visible text of an element."""
        return self._session.get(f"element/{self._find(selector)}/text").json()["value"]

    def until(self, script: str, seconds: float = 60.0) -> Any:
        """Waits until an expression is true and returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.script(f"return {script}")):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)
        return value

    def screen(self, width: int, height: int) -> None:
        """Emulates a screen of this size, since windows cannot be as narrow as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", **size)

    def offline(self, is_offline: bool) -> None:
        """Takes the browser offline or online."""
        conditions = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._devtools("Network.enable")
        self._devtools("Network.emulateNetworkConditions", **conditions)

    def allow(self, *permissions: str) -> None:
        """Grants a permission that a user would be prompted for."""
        self._devtools("Browser.grantPermissions", permissions=permissions)

    def forget(self, origin: str) -> None:
        """Deletes what an origin has stored."""
        self._devtools("Storage.clearDataForOrigin", origin=origin, storageTypes="all")

    def download_to(self, folder: Path) -> None:
        """Lets downloads go to a folder without asking."""
        self._devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def limit_storage(self, origin: str, num_bytes: int | None) -> None:
        """Limits what an origin may store; None restores the usual limit."""
        limit = {} if num_bytes is None else {"quotaSize": num_bytes}
        self._devtools("Storage.overrideQuotaForOrigin", origin=origin, **limit)

    def new_tab(self) -> str:
        """Opens another tab, which `show_tab` shows."""
        return self._post("window/new", type="tab")["handle"]

    def show_tab(self, tab: str) -> None:
        """Directs all that follows to a tab."""
        self._post("window", handle=tab)

    def tab(self) -> str:
        return self._session.get("window").json()["value"]

    def close_tab(self) -> None:
        self._session.delete("window")

    def resize(self, width: int, height: int) -> None:
        self._post("window/rect", width=width, height=height)

    def emulate(self, **features: str) -> None:
        """Emulates media features, such as prefers_color_scheme="dark"."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._devtools("Emulation.setEmulatedMedia", features=wanted)

    def screenshot(self, path: Path) -> None:
        """Saves what is shown, as PNG or WebP by the path's suffix."""
        shown = self._devtools("Page.captureScreenshot", format=path.suffix[1:])
        path.write_bytes(b64decode(shown["data"]))

    def point_away(self) -> None:
        """Moves the mouse to the corner, where it points at nothing."""
        self._devtools("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)

    def complaints(self) -> list[str]:
        """Returns the console's errors and policy violations since the last call."""
        entries = self._post("se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _devtools(self, command: str, **params: Any) -> Any:
        return self._post("goog/cdp/execute", cmd=command, params=params)

    def _find(self, selector: str) -> str:
        return self._post("element", using="css selector", value=selector)[_ELEMENT]

    def _post(self, command: str, **fields: Any) -> Any:
        answer = self._session.post(command, json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]


@contextmanager
def browsing() -> Iterator[Browser]:
    """Yields a headless browser."""
    assert DRIVER
    command = [DRIVER, "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{_port(process)}", timeout=60) as client:
            answer = client.post("/session", json={"capabilities": {"alwaysMatch": _CAPABILITIES}}).json()["value"]
            session = client.base_url.join(f"/session/{answer['sessionId']}")
            client.base_url = session.join(f"{session.path}/")
            try:
                yield Browser(client)
            finally:
                client.delete(session)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    for line in process.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip(".\n").rpartition(" ")[2])
    raise AssertionError("chromedriver did not start")


_MOUSE = "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
"""Option of a browser on a computer with a mouse, which a headless one has not."""

_CAPABILITIES = {
    "goog:chromeOptions": {
        "binary": BROWSER,
        "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,800", _MOUSE],
    },
    "goog:loggingPrefs": {"browser": "ALL"},
    "timeouts": {"implicit": 30_000},
}
