"""A gate before gradio's server: only what the page needs comes through, and the page asks nobody but this server.

Gradio's server has many more routes than a page with a picture and a question uses: some fetch an address that the
visitor names, and its page of version 5 asks other servers for fonts and a script.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

OPEN = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|manifest\.json)/?|/(?:assets|static|svelte)/.*"
    r"|/gradio_api/(?:upload|upload_progress|queue/join|queue/data|run/predict|reset|cancel|startup-events|theme\.css|info)/?"
    r"|/gradio_api/heartbeat/\w+|/gradio_api/file=(?!\w+:).+"
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
MAX_EVENT_BYTES = 1_000_000  # of a question with its settings; pictures come by another way


class Guard:
    """ASGI middleware that refuses other routes, other sites' requests and addresses in place of files.

    Of the page itself it takes out what would be fetched from elsewhere, and it forbids the browser to do so.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        cross_site = (b"sec-fetch-site", b"cross-site") in scope["headers"] and path != "/"
        if scope["type"] != "http" or not OPEN.fullmatch(path) or cross_site:
            await _refuse(scope, receive, send, 404)
            return
        if path.startswith(EVENTS):
            body = await _read_body(receive)
            if body is None or _names_address(body):
                await _refuse(scope, receive, send, 400)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, _Answer(send) if path == "/" else _with_headers(send))


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


def _names_address(body: bytes) -> bool:
    """Whether a file of an event is an address, which gradio's server would fetch; also for what is no event."""
    try:
        event = json.loads(body)
    except ValueError:
        return True
    return any("://" in str(path) for path in _paths(event))


def _paths(value: Any) -> Iterator[Any]:
    """The paths of all files in a value of JSON."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)
