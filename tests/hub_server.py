"""A hub on loopback: answers the calls that huggingface_hub makes to create, fill, list and read repositories.

What it keeps is in memory. Uploads go by git LFS, as the client does without Xet (HF_HUB_DISABLE_XET=1).
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_of_the_tests"
_SMALL_BYTES = 1 << 10
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class StoredRepository:
    """A repository: its files now, and those of each commit."""

    private: bool
    name: str
    """Kind and name, so that no two repositories share a commit."""
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    """Content by path, and whether git LFS has it."""
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The newest commit."""
        return list(self.commits)[-1]

    def commit(self, message: str) -> str:
        """Keeps the files as they are now."""
        content = [(path, _blob_oid(data)) for path, (data, _) in sorted(self.files.items())]
        sha = _sha1(repr((self.name, len(self.commits), message, content)).encode())
        self.commits[sha] = dict(self.files)
        self.messages.append(message)
        return sha


@dataclass
class HubServer:
    """A running hub, and what it was asked."""

    url: str = ""
    repositories: dict[tuple[str, str], StoredRepository] = field(default_factory=dict)
    """By kind and name."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Of git LFS, by SHA-256."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each, in order."""
    uploaded_oids: list[str] = field(default_factory=list)
    """SHA-256 of each upload to git LFS, in order."""
    held_from: int | None = None
    """Number of uploads after which further ones wait for `release`."""
    held_downloads_from: int | None = None
    """Number of downloads after which further ones wait likewise."""
    downloaded: list[str] = field(default_factory=list)
    """Path in its repository of each download, in order."""
    release: threading.Event = field(default_factory=threading.Event)

    def files(self, name: str, kind: str = "dataset") -> dict[str, bytes]:
        """The files of a repository, without the hub's own."""
        return {path: data for path, (data, _) in self.repositories[kind, name].files.items() if path != ".gitattributes"}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub while it is open."""
    hub = HubServer()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815 - their names

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(path.query).items()}
        self.state.requests.append(f"{self.command} {path.path}")
        try:
            self._route([unquote(part) for part in path.path.strip("/").split("/")], unquote(path.path).strip("/"))
        except _Refused as refused:
            headers = {"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})}
            self._send(json.dumps({"error": str(refused), **refused.more}).encode(), status=refused.status, headers=headers)

    def _route(self, parts: list[str], path: str) -> None:
        if parts[0] == "lfs":
            self._upload(parts[1])
        elif parts[0] == "api":
            self._api(parts[1:])
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch()
        else:
            kind = _KINDS.get(parts[0], "model")
            rest = parts[1:] if parts[0] in _KINDS else parts
            assert rest[2] == "resolve", path
            self._resolve(self._repository(kind, "/".join(rest[:2])), rest[3], "/".join(rest[4:]))

    def _api(self, parts: list[str]) -> None:
        if parts[0] == "whoami-v2":
            self._check_token()
            self._json({"name": "me", "type": "user", "orgs": []})
        elif parts == ["repos", "create"]:
            self._create(json.loads(self.body))
        elif parts[0] == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif parts[0] not in _KINDS:
            raise _Refused(404, "Not Found")
        else:
            name = "/".join(parts[1:3])
            repository = self._repository(_KINDS[parts[0]], name)
            what, revision, path = (parts[3:4] or ["revision"])[0], (parts[4:5] or ["main"])[0], "/".join(parts[5:])
            if what == "revision":
                self._info(repository, name, revision)
            elif what == "tree":
                self._json(self._tree(repository, revision, path))
            elif what == "paths-info":
                self._json(self._paths_info(repository, revision))
            elif what == "preupload":
                self._preupload(repository)
            elif what == "commit":
                self._commit(repository, name)
            elif what == "settings":
                self._check_token()
                repository.private = json.loads(self.body)["visibility"] == "private"
                self._json({})
            else:
                raise AssertionError(self.path)

    def _repository(self, kind: str, name: str) -> StoredRepository:
        found = self.state.repositories.get((kind, name))
        if found is None or (found.private and not self._has_token()):
            raise _Refused(401 if not self._has_token() else 404, "Repository not found", "RepoNotFound")
        return found

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _check_token(self) -> None:
        if not self._has_token():
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _create(self, given: dict[str, Any]) -> None:
        self._check_token()
        kind, name = given.get("type", "model"), f"{given['organization'] or 'me'}/{given['name']}"
        if given["organization"] not in (None, "me"):
            raise _Refused(403, f"You don't have the rights to create a {kind} under {given['organization']}")
        if (kind, name) in self.state.repositories:
            raise _Refused(409, f"You already created this {kind} repo", url=self._page(kind, name))
        repository = StoredRepository(private=given.get("visibility") == "private", name=f"{kind} {name}")
        repository.files[".gitattributes"] = (b"*.parquet filter=lfs\n", False)
        repository.commit("initial commit")
        self.state.repositories[kind, name] = repository
        self._json({"url": self._page(kind, name), "name": name, "id": name})

    def _page(self, kind: str, name: str) -> str:
        return f"{self.state.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"

    def _info(self, repository: StoredRepository, name: str, revision: str) -> None:
        files = self._files(repository, revision)
        sha = repository.head if revision == "main" else revision
        siblings = [{"rfilename": path} for path in files]
        dates = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
        card = files.get("README.md", (b"", False))[0].decode().split("---\n", 2)
        front = {"cardData": yaml.safe_load(card[1])} if len(card) > 2 else {}
        more = {**front, "downloads": 0, "likes": 0, "tags": [], "disabled": False, "gated": False}
        self._json({"_id": name, "id": name, "sha": sha, "private": repository.private, "siblings": siblings, **dates, **more})

    def _files(self, repository: StoredRepository, revision: str) -> dict[str, tuple[bytes, bool]]:
        if revision == "main":
            return repository.files
        if revision not in repository.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[revision]

    def _tree(self, repository: StoredRepository, revision: str, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        files = {path: stored for path, stored in self._files(repository, revision).items() if path.startswith(prefix)}
        if folder and not files:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        folders = {path[: path.index("/", len(prefix))] for path in files if "/" in path[len(prefix) :]}
        if self.query.get("recursive", "").lower() != "true":
            files = {path: stored for path, stored in files.items() if "/" not in path[len(prefix) :]}
        entries = [{"type": "directory", "oid": _sha1(path.encode()), "size": 0, "path": path} for path in sorted(folders)]
        return [*entries, *(_entry(path, *stored) for path, stored in sorted(files.items()))]

    def _paths_info(self, repository: StoredRepository, revision: str) -> list[dict[str, Any]]:
        files, found = self._files(repository, revision), []
        given = json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
        for path in given:
            if path in files:
                found.append(_entry(path, *files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "oid": _sha1(path.encode()), "size": 0, "path": path})
        return found

    def _preupload(self, repository: StoredRepository) -> None:
        self._check_token()
        answers = []
        for file in json.loads(self.body)["files"]:
            stored = repository.files.get(file["path"])
            is_large = file["size"] > _SMALL_BYTES or file["path"].endswith((".parquet", ".safetensors", ".png"))
            oid = None if stored is None else hashlib.sha256(stored[0]).hexdigest() if stored[1] else _blob_oid(stored[0])
            mode = "lfs" if is_large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _batch(self) -> None:
        self._check_token()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.state.url}/lfs/{wanted['oid']}"}}
            there = wanted["oid"] in self.state.objects
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **({} if there else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if self.state.held_from is not None and len(self.state.uploaded_oids) >= self.state.held_from:
            self.state.release.wait(60)
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.state.objects[oid] = self.body
        self.state.uploaded_oids.append(oid)
        self._json({})

    def _commit(self, repository: StoredRepository, name: str) -> None:
        self._check_token()
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.state.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(line)
        repository.files = files
        sha = repository.commit(lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _resolve(self, repository: StoredRepository, revision: str, path: str) -> None:
        files = self._files(repository, revision)
        if path not in files:
            raise _Refused(404, f"{path} does not exist", "EntryNotFound")
        if self.command == "GET":
            if self.state.held_downloads_from is not None and len(self.state.downloaded) >= self.state.held_downloads_from:
                self.state.release.wait(60)
            self.state.downloaded.append(path)
        data, is_large = files[path]
        etag = hashlib.sha256(data).hexdigest() if is_large else _blob_oid(data)
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": repository.head if revision == "main" else revision,
            "Accept-Ranges": "bytes",
            **({"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))} if is_large else {}),
        }
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self._send(data, headers=headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(data[start : end + 1], status=206, headers=headers)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _send(self, data: bytes, *, status: int = 200, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes, is_large: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _blob_oid(data), "size": len(data), "path": path}
    entry["lastCommit"] = {"id": "0" * 40, "title": "a commit", "date": "2026-01-01T00:00:00.000Z"}
    pointer = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry | ({"lfs": pointer} if is_large else {})


def _blob_oid(data: bytes) -> str:
    """The name that git gives a file's content."""
    return _sha1(f"blob {len(data)}\0".encode() + data)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
