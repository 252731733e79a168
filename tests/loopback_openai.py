"""A server of our own on this machine that speaks OpenAI's protocol, or misbehaves as a test wants."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text: str | None = "a red bus", *, finish="stop", model="tiny-1", usage=True, **message) -> dict:
    """The body of a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    told = {"usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}} if usage else {}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], **told}


class Talk(BaseHTTPRequestHandler):
    """Gives each request to `server.answer(talk, number)`, which uses the methods below."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        with self.server.lock:
            number = len(self.server.requests)
            self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, self.headers, self.body))
        self.server.answer(self, number)

    do_GET = do_POST

    def give(self, content: dict | str | bytes, status: int = 200, kind: str = "application/json", **headers: str):
        data = json.dumps(content) if isinstance(content, dict | list) else content
        data = data.encode() if isinstance(data, str) else data
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str):
        error = {"message": message, "type": "error", "param": param, "code": code}
        self.give({"error": error}, status, **headers)

    def hang_up(self):
        self.close_connection = True
        self.connection.close()

    def give_half(self, content: dict):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True

    def give_slowly(self, content: dict, seconds: float):
        """A byte at a time, so that no single wait is long."""
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(seconds / len(data))

    @property
    def question(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass  # a client that is gone


@contextmanager
def serve(answer: Callable[[Talk, int], None]) -> Iterator[_Server]:
    """The server; `server.url` is its address, `server.requests` what was asked: path, headers, body."""
    server = _Server(("127.0.0.1", 0), Talk)
    server.answer, server.requests, server.lock = answer, [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
