"""A gate before gradio's server: only what the page needs comes through, and the page asks nobody but this server.

Gradio's server has many more routes than a page with a picture and a question uses; some fetch an address that a
visitor names. And its page of version 5 asks other servers for fonts and a script.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from imp_kit.system.loopback import names_this_machine

OPEN = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json)/?|/(?:assets|static|svelte)/.*"
    r"|/gradio_api/(?:upload|upload_progress|queue/join|queue/data|run/predict|reset|cancel|startup-events|theme\.css|info)/?"
    r"|/gradio_api/heartbeat/\w+|/gradio_api/file=(?P<file>.+)"
)
REMOTE_TAGS = re.compile(
    rb"<link\s[^>]*\bhref=\"https?://[^>]*>|<script\s[^>]*\bsrc=\"https?://[^>]*>\s*</script>", re.IGNORECASE
)
HEADERS = [
    # The page's own code is inline, and gradio's makes functions of strings; nothing may come from elsewhere.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'self'; "
        b"object-src 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")  # what a visitor does, as JSON
# Variables of Colab and JupyterHub, whose users reach the page by a proxy, which may give a name of its own as Host.
PROXIES = ("COLAB_RELEASE_TAG", "JUPYTERHUB_SERVICE_PREFIX")
MAX_EVENT_BYTES = 1_000_000  # of a question with its settings; pictures come by another way


class Guard:
    """ASGI middleware that refuses other routes, other sites' requests, and files that are not in `folder`.

    Of the page itself it takes out what would be fetched from elsewhere, and it forbids the browser to do so.
    """

    def __init__(self, app: Any, folder: str):
        self.app, self.folder = app, os.path.join(os.path.realpath(folder), "")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        route = OPEN.fullmatch(path)
        outside = route and route["file"] and not self._holds(route["file"])
        cross_site = (b"sec-fetch-site", b"cross-site") in scope["headers"] and path != "/"
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        rebound = not (names_this_machine(host) or any(name in os.environ for name in PROXIES))
        if scope["type"] != "http" or not route or outside or cross_site or rebound:
            await _refuse(scope, receive, send, 404)
            return
        if path.startswith(EVENTS):
            body = await _read_body(receive)
            if body is None or not all(map(self._holds, _paths(body))):
                await _refuse(scope, receive, send, 400)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, _Answer(send) if path == "/" else _with_headers(send))

    def _holds(self, path: object) -> bool:
        """Whether a path leads into the folder; an address does not."""
        try:
            return isinstance(path, str) and os.path.realpath(path).startswith(self.folder)
        except ValueError:  # a null byte
            return False


class _Answer:
    """Sends the page when it is whole, without what it would fetch from elsewhere."""

    def __init__(self, send: Any):
        self._send, self._start, self._body = send, None, b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return
        body = REMOTE_TAGS.sub(b"", self._body)
        headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        self._start["headers"] = [*headers, (b"content-length", str(len(body)).encode()), *HEADERS]
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def _with_headers(send: Any) -> Any:
    async def sender(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return sender


async def _refuse(scope: Any, receive: Any, send: Any, status: int) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _read_body(receive: Any) -> bytes | None:
    """A request's body; None where it is longer than MAX_EVENT_BYTES or breaks off."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if message["type"] != "http.request" or len(body) > MAX_EVENT_BYTES:
            return None
    return body


def _replay(body: bytes, receive: Any) -> Any:
    """Hand out a body that was read, and then whatever comes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receiver() -> Any:
        message = next(messages, None)
        return await receive() if message is None else message

    return receiver


def _paths(body: bytes) -> list[object]:
    """The paths of all files that an event names; [None] for what is no event."""
    try:
        return list(_find_paths(json.loads(body)))
    except (ValueError, RecursionError):
        return [None]


def _find_paths(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _find_paths(item)
