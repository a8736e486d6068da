"""A Hub on this machine: the protocol that huggingface_hub speaks, over HTTP, with faults that tests ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "valid" * 5
LARGE = 1000
"""Bytes from which a file is stored as LFS: a redirect to another host when it is fetched."""
PAGE = 3
"""Files on a page of a listing."""


def large(content: bytes) -> bool:
    return len(content) >= LARGE


@dataclass
class Repo:
    """A repository: files by commit, and commits by branch."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        number = len(self.commits)
        oid = hashlib.sha1(repr((number, sorted(files))).encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class LocalHub:
    """State of the server, and its record of requests."""

    repos: dict[str, Repo] = field(default_factory=dict)
    users: tuple[str, ...] = ("user",)
    organizations: tuple[str, ...] = ("team",)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method, path and range of each request."""
    sent: int = 0
    """Bytes of files that were sent."""
    uploaded: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    """Paths at the host of large files that a token was sent to."""
    ranges: bool = True
    status: int | None = None
    """Answer requests with this status."""
    failing: tuple[str, ...] = ("HEAD", "GET", "POST", "PUT")
    """Methods of these requests."""
    message: str = ""
    """With this error."""
    damage: Callable[[str, bytes], bytes] = lambda path, content: content
    """Changes a file's bytes on their way."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Connections for a path are closed after this number of bytes, once."""
    stop_after: dict[str, tuple[int, threading.Event, threading.Event]] = field(default_factory=dict)
    """For a path: bytes after which sending waits, the event that tells so, and the event that ends the wait."""
    refused_uploads: int = 0
    """Number of uploads to refuse."""
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """Answers requests of one server."""

    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _route(self) -> None:
        hub = self.hub
        body = self._body()
        # Slashes of a branch's name are quoted.
        quoted = urlsplit(self.path).path
        path = unquote(quoted)
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.status is not None and self.command in hub.failing:
            self._json({"error": hub.message}, hub.status)
        elif path.startswith("/cdn/"):
            if token:
                hub.leaked.append(path)
            oid = path.split("/")[2]
            self._file(path.split("/", 3)[3], hub.blobs[oid], {"ETag": f'"{oid}"'})
        elif path.startswith("/upload/"):
            self._uploaded(path.split("/")[2], body)
        elif token and token != TOKEN:
            self._answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body), token)
        elif (match := re.fullmatch(r"/api/(users|organizations)/([^/]+)/overview", quoted)) is not None:
            known = hub.users if match[1] == "users" else hub.organizations
            if match[2] in known:
                self._json({"user": match[2], "name": match[2], "fullname": match[2], "avatarUrl": ""})
            else:
                self._json({"error": "This user does not exist"}, 404)
        elif (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)(?:/([^/]+))?", quoted)) is not None:
            self._api(match[1], match[2], unquote(match[3] or "main"), body, token)
        elif (match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)) is not None:
            self._batch(json.loads(body))
        elif (match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", quoted)) is not None:
            self._resolve(match[1], unquote(match[2]), unquote(match[3]), token)
        else:
            self._answer(404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _repo(self, name: str, token: str) -> Repo | None:
        """The repository, or None after an answer that it cannot be read."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not token):
            self._answer(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated:
            self._answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str | None:
        commit = repo.resolve(revision)
        if commit is None:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _resolve(self, name: str, revision: str, path: str, token: str) -> None:
        repo = self._repo(name, token)
        if repo is None or (commit := self._commit_of(repo, revision)) is None:
            return
        headers = {"X-Repo-Commit": commit}
        content = repo.commits[commit].get(path)
        if content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", **headers})
        elif large(content):
            oid = hashlib.sha256(content).hexdigest()
            self.hub.blobs[oid] = content
            # Another host by its name, as the Hub's CDN is.
            location = f"http://localhost:{self.hub.port}/cdn/{oid}/{path}"
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Location": location}
            self._answer(302, {**headers, **linked})
        else:
            self._file(path, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', **headers})

    def _file(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        content = self.hub.damage(path, content)
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        status, start = 200, 0
        if ranged and self.hub.ranges:
            status, start = 206, int(ranged[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        rest = content[start:]
        self._answer(status, headers, len(rest))
        if self.command == "HEAD":
            return
        if path in self.hub.cut_after:
            self._send(rest[: self.hub.cut_after.pop(path)])
            self.close_connection = True
            return
        if path in self.hub.stop_after:
            count, reached, go_on = self.hub.stop_after.pop(path)
            self._send(rest[:count])
            reached.set()
            go_on.wait(60)
            rest = rest[count:]
        self._send(rest)

    def _send(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        self.hub.sent += len(content)

    def _create(self, request: dict[str, Any], token: str) -> None:
        if not token:
            self._answer(401)
            return
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] != "user":
            self._answer(
                403, {"X-Error-Message": "You don't have the rights to create a model under this namespace"}
            )
        elif name in self.hub.repos:
            url = f"{self.hub.endpoint}/{name}"
            self._json({"error": "You already created this model repo", "url": url}, 409)
        else:
            self.hub.repos[name] = Repo(private=request.get("visibility") == "private")
            self.hub.repos[name].commit({".gitattributes": b"*.onnx filter=lfs\n"})
            self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _api(self, name: str, action: str, rest: str, body: bytes, token: str) -> None:
        repo = self._repo(name, token)
        if repo is None:
            return
        if action == "branch":
            if rest in repo.branches:
                self._json({"error": "Reference already exists"}, 409)
            else:
                repo.branches[rest] = repo.branches["main"]
                self._json({})
            return
        commit = self._commit_of(repo, rest)
        if commit is None:
            return
        files = repo.commits[commit]
        if action == "tree":
            self._tree(name, rest, files)
        elif action == "revision":
            self._json({"id": name, "sha": commit, "siblings": []})
        elif action == "preupload":
            asked = json.loads(body)["files"]
            answer = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for f in asked
            ]
            self._json({"files": answer})
        elif action == "commit":
            new = dict(files)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    new[value["path"]] = self.hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del new[value["path"]]
            oid = repo.commit(new, rest)
            self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})
        else:
            self._answer(404)

    def _tree(self, name: str, revision: str, files: dict[str, bytes]) -> None:
        start = int(dict(part.split("=") for part in urlsplit(self.path).query.split("&")).get("cursor", "0"))
        names = sorted(files)
        listed = [
            {
                "type": "file",
                "path": path,
                "size": len(files[path]),
                "oid": hashlib.sha1(files[path]).hexdigest(),
            }
            for path in names[start : start + PAGE]
        ]
        more = start + PAGE < len(names)
        url = f"{self.hub.endpoint}/api/models/{name}/tree/{revision}?recursive=True&cursor={start + PAGE}"
        self._json(listed, headers={"Link": f'<{url}>; rel="next"'} if more else {})

    def _batch(self, request: dict[str, Any]) -> None:
        assert request["operation"] == "upload"
        objects = []
        for item in request["objects"]:
            action = {"upload": {"href": f"{self.hub.endpoint}/upload/{item['oid']}", "header": {}}}
            there = item["oid"] in self.hub.blobs
            objects.append(
                {"oid": item["oid"], "size": item["size"]} | ({} if there else {"actions": action})
            )
        self._json({"transfer": "basic", "objects": objects})

    def _uploaded(self, oid: str, body: bytes) -> None:
        if self.hub.refused_uploads:
            self.hub.refused_uploads -= 1
            self._answer(403, {"X-Error-Message": "storage limit reached"})
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.hub.uploaded.append(oid)
        self._answer(200)

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self._answer(status, {"Content-Type": "application/json", **(headers or {})}, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self, status: int, headers: dict[str, str] | None = None, length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def start(hub: LocalHub) -> ThreadingHTTPServer:
    """Serve a hub from a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
