"""A server on loopback that answers like the hub: what huggingface_hub and datasets ask of it, and faults on demand.

As documented at https://huggingface.co/docs/hub/api and seen in the client's requests: repo info, trees, paths-info,
files by /resolve/ with X-Repo-Commit and ETag, large ones behind a redirect with X-Linked-Etag, refusals with
X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 4_096  # a file from this size on lies behind a redirect, as LFS files do
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[\w.-]+/[\w.-]+)(/(?P<what>[\w-]+)(/(?P<rest>.*))?)?")


@dataclass
class Repo:
    """commits: files by path, by commit; branches and tags: commit by name. status: 0, or what every request gets."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    status: int = 0
    error_code: str = ""
    token: str | None = None  # that a request has to carry

    def push(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """A commit's hash, as deterministic as the files."""
        listing = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())
        commit = hashlib.sha1(json.dumps([ref, listing]).encode()).hexdigest()
        self.commits[commit], self.refs[ref] = dict(files), commit
        return commit

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]  # by name in small letters


class Hub:
    """Repositories by "models/ORG/NAME" and "datasets/ORG/NAME", and every request that came."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.break_after: dict[str, int] = {}  # file's path: bytes after which the connection breaks, once each time
        self.breaks_left: dict[str, int] = {}
        self.endpoint = self.cdn = ""

    def model(self, name: str) -> Repo:
        return self.repos.setdefault(f"models/{name}", Repo())

    def dataset(self, name: str) -> Repo:
        return self.repos.setdefault(f"datasets/{name}", Repo())

    def gets(self, path: str) -> list[Request]:
        """Requests for the content of a file."""
        commits = [files for repo in self.repos.values() for files in repo.commits.values()]
        blobs = {f"/cdn/{hashlib.sha256(files[path]).hexdigest()}" for files in commits if path in files}
        contents = [r for r in self.requests if r.method == "GET" and "/api/" not in r.path]
        return [r for r in contents if r.path.endswith("/" + path) or r.path in blobs]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, for a push."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port = server.server_address[1]
    hub.endpoint, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"  # the client tells hosts apart
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/cdn/"):
            return self._send_file(path.removeprefix("/cdn/"))
        api, file = API.fullmatch(url.path), RESOLVE.fullmatch(url.path)  # a revision's slashes are quoted
        if file:
            kind = "datasets" if file["kind"] else "models"
            repo = self._repo(f"{kind}/{file['name']}")
            return self._resolve(repo, unquote(file["revision"]), unquote(file["path"])) if repo else None
        if api:
            repo = self._repo(f"{api['kind']}/{api['name']}")
            return self._api(repo, api, body, parse_qs(url.query)) if repo else None
        return self._send(404, {"error": "no such page"})

    def _repo(self, key: str) -> Repo | None:
        """The repository, or None when the refusal was sent. The hub hides private ones behind the same answers."""
        repo = self.hub.repos.get(key)
        sent = self.headers.get("Authorization")
        if repo is None:
            self._refuse(401 if sent is None else 404, "RepoNotFound")
        elif repo.token is not None and sent != f"Bearer {repo.token}":
            self._refuse(403 if sent else 401, repo.error_code or "RepoNotFound")
        elif repo.status:
            self._refuse(repo.status, repo.error_code)
        else:
            return repo
        return None

    def _api(self, repo: Repo, asked: re.Match[str], body: bytes, query: dict[str, list[str]]) -> None:
        what, rest = asked["what"], asked["rest"] or ""
        revision, folder = map(unquote, rest.partition("/")[::2])
        commit = repo.commit(revision or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if what in (None, "revision"):
            return self._send(200, _info(asked["name"], commit, files))
        if what == "tree":
            entries = _tree(files, folder, query.get("recursive", ["False"])[0].lower() in ("true", "1"))
            return self._send(200, entries) if entries else self._refuse(404, "EntryNotFound")
        if what == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            every = {entry["path"]: entry for entry in [*_tree(files, "", True), *_folders(files)]}
            return self._send(200, [every[path] for path in paths if path in every])
        return self._send(404, {"error": "no such page"})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        data = repo.commits[commit].get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if len(data) < LARGE_BYTES:
            return self._send_bytes(data, headers, path)
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        return self._send_bytes(b"", headers | {"Location": f"{self.hub.cdn}/cdn/{digest}"}, path, 302)

    def _send_file(self, digest: str) -> None:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for path, data in files.items():
                    if hashlib.sha256(data).hexdigest() == digest:
                        return self._send_bytes(data, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}, path)
        return self._send(404, {"error": "no such blob"})

    def _send_bytes(self, data: bytes, headers: dict[str, str], path: str, status: int = 200) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        whole = len(data)
        if asked and status == 200:
            end = int(asked[2]) + 1 if asked[2] else whole
            status, headers = 206, headers | {"Content-Range": f"bytes {asked[1]}-{end - 1}/{whole}"}
            data = data[int(asked[1]) : end]
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status < 300 and self.hub.breaks_left.get(path, 0):
            self.hub.breaks_left[path] -= 1
            self.wfile.write(data[: self.hub.break_after[path]])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"error": "refused"}, ({"X-Error-Code": code} if code else {}) | (headers or {}))

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        own = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, text in (own | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(name: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "gated": False, "disabled": False,
        "tags": [], "downloads": 0, "likes": 0, "author": name.split("/")[0],
        "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": path} for path in files],
    }  # fmt: skip


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    below = {path: data for path, data in files.items() if path.startswith(prefix)}
    shown = [_entry(p, d) for p, d in below.items() if recursive or "/" not in p[len(prefix) :]]
    folders = [e for e in _folders(files) if e["path"].startswith(prefix) and "/" not in e["path"][len(prefix) :]]
    return shown + ([] if recursive else folders)


def _folders(files: dict[str, bytes]) -> list[dict[str, Any]]:
    paths = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(paths)]


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) >= LARGE_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
