"""A real headless Chromium, driven through its DevTools protocol: what a person sees and does in a page."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (  # no requests of its own, and a camera that needs no hardware
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--no-sandbox", "--disable-gpu"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--disable-dev-shm-usage"),
)
DRIVEN = 300  # seconds that a busy machine may take for a step


class Browser:
    """Chromium with a profile of its own, which is gone afterwards."""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        port = Path(self._profile.name, "DevToolsActivePort")
        self._process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"], stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + DRIVEN
        while not port.exists() or "\n" not in port.read_text():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("Chromium does not start")
            time.sleep(0.1)
        self._host = f"127.0.0.1:{port.read_text().splitlines()[0]}"
        with urlopen(f"http://{self._host}/json/version") as answer:
            self._socket = Socket(json.load(answer)["webSocketDebuggerUrl"])
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(DRIVEN)
        self._profile.cleanup()

    def tab(self, language: str = "en-US", size: tuple[int, int] = (1280, 900)) -> "Tab":
        """A tab of a visitor of its own: no cookie or storage is shared with another."""
        context = self._socket.call("Target.createBrowserContext")["browserContextId"]
        target = self._socket.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return Tab(f"ws://{self._host}/devtools/page/{target}", language, size, context)

    def allow(self, tab: "Tab", url: str, *permissions: str) -> None:
        """Give an address what a visitor would be asked for, such as "clipboardReadWrite"."""
        self._socket.call(
            "Browser.grantPermissions", origin=url.rstrip("/"), permissions=permissions, browserContextId=tab.context
        )


class Socket:
    """One end of the protocol: calls, their results, and the events that come between them."""

    def __init__(self, url: str):
        self._connection = websocket.create_connection(url, timeout=DRIVEN, suppress_origin=True)
        self._number = 0
        self.events: list[dict] = []

    def call(self, method: str, **parameters: object) -> dict:
        """Call a method of the protocol and wait for its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv())).get("id") != self._number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def close(self) -> None:
        self._connection.close()


class Tab(Socket):
    """A page, and what its visitor does with mouse, keys and files."""

    def __init__(self, url: str, language: str, size: tuple[int, int], context: str):
        super().__init__(url)
        self.context = context
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Network.setExtraHTTPHeaders", headers={"Accept-Language": language})
        self.resize(*size)

    def resize(self, width: int, height: int) -> None:
        """Show the page in a window of this many pixels; a narrow one is a phone's."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone},
        )

    def dark(self, is_dark: bool) -> None:
        """Whether the visitor's system asks for dark pages."""
        value = "dark" if is_dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, code: str):
        """The value of an expression of JavaScript, which may be a promise."""
        done = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{code}: {done['exceptionDetails'].get('exception', {}).get('description')}")
        return done["result"].get("value")

    def wait(self, code: str, seconds: float = DRIVEN):
        """Wait until an expression is true as JavaScript sees it, and return its value; an element's is {}."""
        end = time.monotonic() + seconds
        while (value := self.run(code)) in (None, False, 0, ""):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {code}; the page says {self.text('body')!r:.3000}")
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What can be read in the element; "" without one."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click on the middle of an element, as a mouse does, once it is there and can be seen."""
        place = self.wait(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                if (!element || element.disabled) return null;
                element.scrollIntoView({{block: "center", behavior: "instant"}});
                const box = element.getBoundingClientRect();
                return box.width && box.height ? [box.x + box.width / 2, box.y + box.height / 2] : null;
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1, buttons=1
            )

    def type(self, selector: str, text: str, *, enter: bool = False) -> None:
        """Write into a field that is empty, and press Enter."""
        self.click(selector)
        self.call("Input.insertText", text=text)
        if enter:
            enter_key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.call("Input.dispatchKeyEvent", type="keyDown", **enter_key)
            self.call("Input.dispatchKeyEvent", type="keyUp", **enter_key)

    def choose_file(self, selector: str, path: object) -> None:
        """Give a file to an input of files, as its dialog does."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: object, whole: bool = False) -> None:
        """Save what the window shows as PNG, or the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """The addresses of all requests so far, whether they were let through or not."""
        self.run("0")  # takes the events that wait
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def errors(self) -> list[str]:
        """What the page's own code did not catch."""
        self.run("0")
        thrown = [e["params"]["exceptionDetails"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        return [details.get("exception", {}).get("description", details["text"]) for details in thrown]
