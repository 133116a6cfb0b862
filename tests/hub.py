"""A hub for tests: an HTTP server for the models and data sets of a folder, as far as they are only read.

<folder>/models/<owner>/<name>/<files>      <folder>/datasets/<owner>/<name>/<files>
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder`; gives the address and the requests so far."""
    requests: list[str] = []

    class Handler(_Handler):
        root, log = folder, requests

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    log: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.log.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[0] == "api":
            self._api(self.root.joinpath(*parts[1:4]), parts[4:], url.query, body)
            return
        repo, rest = (parts[:3], parts[3:]) if parts[0] == "datasets" else (["models", *parts[:2]], parts[2:])
        file = self.root.joinpath(*repo, *rest[2:])  # rest: resolve/<revision>/<file>
        if rest[:1] == ["resolve"] and file.is_file():
            self._send(200, file.read_bytes(), {"ETag": f'"{_object(file)}"', "X-Repo-Commit": COMMIT})
        else:
            code = "EntryNotFound" if self.root.joinpath(*repo).is_dir() else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    do_HEAD = do_POST = do_GET

    def _api(self, repo: Path, rest: list[str], query: str, body: bytes) -> None:
        if not repo.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if rest[:1] == ["tree"]:
            below = repo.joinpath(*rest[2:])
            if not below.is_dir():
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            inside = below.rglob("*") if parse_qs(query).get("recursive") == ["true"] else below.iterdir()
            answer: Any = [_entry(path, repo) for path in sorted(inside)]
        elif rest[:1] == ["paths-info"]:
            text = body.decode()
            asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            answer = [_entry(repo / name, repo) for name in asked if (repo / name).exists()]
        else:
            files = [path for path in sorted(repo.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": str(path.relative_to(repo))} for path in files]
            answer = {
                "id": "/".join(repo.parts[-2:]),
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "siblings": siblings,
            }
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def _object(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


def _entry(path: Path, repo: Path) -> dict[str, Any]:
    name = str(path.relative_to(repo))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    return {"type": "file", "path": name, "oid": _object(path), "size": path.stat().st_size}
