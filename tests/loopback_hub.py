"""A small hub of our own on this machine: the routes that a download and an inspection use."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves `server.repositories`, {hub id: {name: bytes}}; `cut` are names whose download breaks off.

    `commits` {hub id: commit} and `sizes` {(hub id, name): bytes} are what it tells where that differs.
    """

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        for hub_id, files in self.server.repositories.items():
            commit = self.server.commits.get(hub_id, COMMIT)
            known = [f"/revision/{revision}" for revision in (self.server.revision, commit)]
            if path.startswith(f"/api/models/{hub_id}") and path.removeprefix(f"/api/models/{hub_id}") in ("", *known):
                sizes = {name: self.server.sizes.get((hub_id, name), len(data)) for name, data in files.items()}
                siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
                return self.give(json.dumps({"id": hub_id, "sha": commit, "siblings": siblings}).encode(), body)
            if path == f"/api/models/{hub_id}/tree/{commit}":  # what the hub's client asks for since its version 2
                tree = [{"type": "file", "path": n, "size": len(data), "oid": n} for n, data in files.items()]
                return self.give(json.dumps(tree).encode(), body)
            if path.startswith(f"/{hub_id}/resolve/{commit}/"):
                name = path.removeprefix(f"/{hub_id}/resolve/{commit}/")
                if name in files:
                    etag = name if len(self.server.repositories) == 1 else f"{hub_id}/{name}".replace("/", "-")
                    return self.give(files[name], body, name in self.server.cut, etag, commit)
                return self.refuse("EntryNotFound")
            if path.startswith(f"/api/models/{hub_id}/revision/"):
                return self.refuse("RevisionNotFound")
        self.refuse("RepoNotFound")

    def refuse(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def give(self, content: bytes, body: bool, cut: bool = False, etag: str = "x", commit: str = COMMIT):
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.sent[etag] = self.server.sent.get(etag, 0) + len(content)
            self.wfile.write(content[:1000] if cut else content)
            if cut:
                self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]], cache) -> Iterator[tuple[ThreadingHTTPServer, dict[str, str]]]:
    """The server, and the environment in which a process asks it and keeps what it got in `cache`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.sent, server.cut, server.revision = [], {}, set(), "main"
    server.repositories, server.commits, server.sizes = repositories, {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    try:
        yield server, environment
    finally:
        server.shutdown()
