"""A hub on this machine: as much of the Hugging Face hub's HTTP API as reading and commits need.

Written from what huggingface_hub 2.4 asks for. Folders are served as datasets or as models, at
branches and tags that can move; large files lie on a second server, as the hub's do, which must
never be sent a token. Whoever has a token that `know` was told can make models, commit to them
and tag them; without Xet, which HF_HUB_DISABLE_XET turns off. Answers can be made to fail.

The library reads its settings at import, so code under test runs in a child process with the
environment of `HubServer.env`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LFS_SUFFIXES = (
    ".parquet", ".tar", ".gz", ".tgz", ".zip", ".jpg", ".jpeg", ".png", ".webp",
    ".safetensors", ".h5", ".bin",
)  # fmt: skip
_LFS_BYTES = 10 << 20
_CHUNK_BYTES = 1 << 18

TOKEN = "hf_SecretThatMustNotBeShown"
NOW = {"Retry-After": "0"}
"""Headers of an answer that may be asked for again at once."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What code in a process of its own put into `out`, and what it logged."""

    out: dict[str, Any]
    log: str


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked, and how it was answered."""

    method: str
    path: str
    token: str | None
    range: str | None
    status: int


@dataclasses.dataclass
class Fault:
    """What goes wrong with the requests that match.

    Attributes:
        match: Regular expression, searched in `METHOD /path`.
        times: How often; `None` for ever.
        status: Answer with this error instead.
        headers: More headers for that answer.
        cut_after: Close the connection after so many bytes of the body.
        body: Send this in place of the file's bytes, with headers as for the file.
        etag: Give this as the file's ETag.
    """

    match: str
    times: int | None = None
    status: int | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cut_after: int | None = None
    body: bytes | None = None
    etag: str | None = None


@dataclasses.dataclass(frozen=True)
class _File:
    local: Path
    size: int
    sha256: str
    blob_id: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclasses.dataclass
class _Repo:
    commits: dict[str, dict[str, _File]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    private_to: frozenset[str] | None = None
    gated_to: frozenset[str] | None = None
    disabled: bool = False

    def commit(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)


class HubServer:
    """Serves folders as datasets and models until the `with` block ends.

    Attributes:
        url: Address, for HF_ENDPOINT.
        requests: What was asked so far, in order.
    """

    def __init__(self, *, page_size: int = 1000) -> None:
        """Binds two free ports of the loopback interface.

        Args:
            page_size: Entries of a listing that are given at a time.
        """
        self.requests: list[Request] = []
        self._page_size = page_size
        self._repos: dict[str, _Repo] = {}
        self._tokens: set[str] = set()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        # What was uploaded, by the SHA-256 that it was said to have.
        self._uploads = tempfile.TemporaryDirectory()
        # The hub proper, and where large files lie: for a client two different hosts.
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        self.url, self._cdn_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops answering: from then on, connections are refused."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._uploads.cleanup()

    def add(
        self,
        repo_id: str,
        folder: Path,
        *,
        kind: str = "datasets",
        branch: str = "main",
        tag: str = "",
        private_to: Collection[str] | None = None,
        gated_to: Collection[str] | None = None,
    ) -> str:
        """Puts a commit with a folder's files on a branch; they are not copied.

        Args:
            repo_id: The dataset or model; made where there is none.
            folder: Its files.
            kind: `datasets` or `models`.
            branch: Where the commit goes; it moves if it is there.
            tag: A tag for the commit.
            private_to: Tokens that may see the dataset; `None` if anybody may.
            gated_to: Tokens that may fetch its files; `None` if anybody may.

        Returns:
            The commit.
        """
        files = {
            path.relative_to(folder).as_posix(): _file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        content = json.dumps([repo_id, {path: file.sha256 for path, file in files.items()}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repo = self._repos.setdefault(f"{kind}/{repo_id}", _Repo())
        repo.commits[commit] = files
        repo.branches[branch] = commit
        if tag:
            repo.tags[tag] = commit
        repo.private_to = None if private_to is None else frozenset(private_to)
        repo.gated_to = None if gated_to is None else frozenset(gated_to)
        self.know(*(private_to or ()), *(gated_to or ()))
        return commit

    def create(self, repo_id: str) -> None:
        """Makes an empty model, as the hub does: with a first commit."""
        repo = self._repos.setdefault(f"models/{repo_id}", _Repo())
        repo.branches["main"] = hashlib.sha1(repo_id.encode()).hexdigest()
        repo.commits[repo.branches["main"]] = {}

    def commit(self, repo: _Repo, lines: list[dict[str, Any]]) -> str:
        """Applies a commit, as the library writes it, to `main`."""
        files = dict(repo.commits[repo.branches["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] in ("file", "lfsFile"):
                if line["key"] == "file":
                    content = base64.b64decode(value["content"])
                    local = self._upload(hashlib.sha256(content).hexdigest())
                    local.write_bytes(content)
                else:
                    local = self._upload(value["oid"])
                file = _file(local, value["path"])
                assert line["key"] == "file" or file.sha256 == value["oid"]
                files[value["path"]] = file
        content = json.dumps([len(repo.commits), {p: f.sha256 for p, f in files.items()}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repo.commits[commit] = files
        repo.branches["main"] = commit
        return commit

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, Path]:
        """The files of a repository, and where they lie."""
        repo = self._repos[f"{kind}/{repo_id}"]
        commit = repo.commit(revision)
        assert commit is not None
        return {path: file.local for path, file in repo.commits[commit].items()}

    def _upload(self, oid: str) -> Path:
        return Path(self._uploads.name, oid)

    def know(self, *tokens: str) -> None:
        """Makes tokens valid, whatever they may read."""
        self._tokens.update(tokens)

    def disable(self, repo_id: str) -> None:
        """Takes a dataset down, as the hub's staff does."""
        self._repos[f"datasets/{repo_id}"].disabled = True

    def fail(self, match: str, times: int | None = None, **what: Any) -> None:
        """Lets requests fail; see `Fault`."""
        self._faults.append(Fault(match, times, **what))

    def mend(self) -> None:
        """Ends all faults."""
        self._faults.clear()

    def asked(self, match: str) -> list[Request]:
        """The requests so far whose `METHOD /path` matches."""
        return [
            request
            for request in list(self.requests)
            if re.search(match, f"{request.method} {request.path}")
        ]

    def env(self, home: Path) -> dict[str, str]:
        """Environment variables that make a child process use this hub.

        Args:
            home: Empty folder, or one used before, for the hub's cache.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def run(self, home: Path, code: str, **env: str) -> Ran:
        """Runs code in a process of its own, and looks for `TOKEN` in all that it wrote.

        Args:
            home: Folder for the hub's cache.
            code: Python that fills the dict `out`; a value that is text must be one line.
            **env: More environment variables.
        """
        done = subprocess.run(
            [sys.executable, "-c", f"import json\nout = {{}}\n{code}\nprint(json.dumps(out))"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "HF_DEBUG": "1",
                **self.env(home),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        for written in home.rglob("*"):
            if written.is_file() and not written.is_symlink() and written.stat().st_size < 1 << 20:
                assert TOKEN.encode() not in written.read_bytes()
        assert TOKEN not in done.stdout + done.stderr
        out = json.loads(done.stdout.splitlines()[-1])
        for message in out.values():
            assert not isinstance(message, str) or "\n" not in message
        return Ran(out, done.stderr)

    def fault(self, request: str) -> Fault | None:
        """Takes the first fault that matches `METHOD /path`."""
        with self._lock:
            for fault in self._faults:
                if (fault.times is None or fault.times > 0) and re.search(fault.match, request):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Many connections come at once from the library's threads.
    request_queue_size = 64
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none."""


class _Error(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        self._fault = self.server.hub.fault(f"{self.command} {unquote(self.path)}")
        try:
            if self._fault is not None and self._fault.status is not None:
                self._send(self._fault.status, {**self._fault.headers}, b"it is on purpose")
                return
            self._route()
        except _Error as error:
            body = json.dumps({"error": str(error)}).encode()
            headers = {**error.headers, "Content-Type": "application/json"}
            self._send(error.status, headers, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _write(self, parts: list[str], body: bytes) -> None:
        hub = self.server.hub
        if self.server is not hub._servers[0]:
            assert self._token() is None, "the second server was sent a token"
            hub._upload(parts[-1]).write_bytes(body)
            self._send_json({})
            return
        if self._token() not in hub._tokens:
            raise _Error(401, "", "Invalid username or password.")
        asked = json.loads(body) if parts[-2] != "commit" else None
        if parts == ["api", "repos", "create"]:
            repo_id = f"{asked['organization']}/{asked['name']}"
            answer = {"url": f"{hub.url}/{repo_id}"}
            if f"models/{repo_id}" in hub._repos:
                refusal = json.dumps({"error": "You already created this model repo", **answer})
                self._send(409, {"Content-Type": "application/json"}, refusal.encode())
                return
            hub.create(repo_id)
            self._send_json(answer)
        elif parts == ["api", "validate-yaml"]:
            assert asked["content"].startswith("---\n")
            self._send_json({"errors": [], "warnings": []})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = [
                {
                    "oid": entry["oid"],
                    "size": entry["size"],
                    "actions": {"upload": {"href": f"{hub._cdn_url}/upload/{entry['oid']}"}},
                }
                for entry in asked["objects"]
            ]
            self._send_json({"transfer": "basic", "objects": objects})
        elif parts[-2] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in asked["files"]
            ]
            self._send_json({"files": modes})
        elif parts[-2] == "commit":
            repo_id = "/".join(parts[2:-2])
            repo = self._repo(f"models/{repo_id}")
            commit = hub.commit(repo, [json.loads(line) for line in body.splitlines()])
            url = f"{hub.url}/{repo_id}/commit/{commit}"
            self._send_json({"commitUrl": url, "commitOid": commit})
        elif parts[-2] == "tag":
            repo = self._repo(f"models/{'/'.join(parts[2:-2])}")
            if asked["tag"] in repo.tags:
                raise _Error(409, "", "Reference already exists")
            repo.tags[asked["tag"]] = self._commit(repo, unquote(parts[-1]))
            self._send_json({})
        else:
            raise _Error(404, "", "Not Found")

    def _route(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if self.command in ("POST", "PUT"):
            self._write(parts, self._body())
            return
        if self.server is not hub._servers[0]:
            commit, _, path = (unquote(part) for part in parts)
            files = next(r.commits[commit] for r in hub._repos.values() if commit in r.commits)
            self._send_file(files[path], commit)
            return
        if parts[0] == "api" and parts[1] in ("datasets", "models"):
            repo_id, verb, rest = self._split(parts[2:], ("revision", "tree", "refs"))
            self._send_info(f"{parts[1]}/{repo_id}", verb, rest, parse_qs(url.query))
            return
        # Only a model's address does without its kind.
        kind = "datasets" if parts[0] == "datasets" else "models"
        repo_id, verb, rest = self._split(parts[kind == "datasets" :], ("resolve",))
        if verb and len(rest) > 1:
            self._resolve(f"{kind}/{repo_id}", unquote(rest[0]), unquote("/".join(rest[1:])))
            return
        raise _Error(404, "", "Not Found")

    @staticmethod
    def _split(parts: list[str], verbs: tuple[str, ...]) -> tuple[str, str, list[str]]:
        for at in (1, 2):
            if len(parts) > at and parts[at] in verbs:
                return "/".join(parts[:at]), parts[at], parts[at + 1 :]
        return "/".join(parts), "", []

    def _repo(self, repo_id: str) -> _Repo:
        hub, token = self.server.hub, self._token()
        if token is not None and token not in hub._tokens:
            raise _Error(401, "", "Invalid credentials in Authorization header")
        repo = hub._repos.get(repo_id)
        if repo is None or (repo.private_to is not None and token not in repo.private_to):
            # The hub does not tell whether there is a private dataset.
            status = 401 if token is None else 404
            raise _Error(status, "RepoNotFound", "Repository not found")
        if repo.disabled:
            raise _Error(403, "", "Access to this resource is disabled.")
        return repo

    def _commit(self, repo: _Repo, revision: str) -> str:
        commit = repo.commit(revision)
        if commit is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _send_info(
        self, repo_id: str, verb: str, rest: list[str], query: dict[str, list[str]]
    ) -> None:
        repo = self._repo(repo_id)
        if verb == "refs":
            refs = {
                "branches": [_ref(name, "heads", sha) for name, sha in repo.branches.items()],
                "tags": [_ref(name, "tags", sha) for name, sha in repo.tags.items()],
                "converts": [],
            }
            self._send_json(refs)
            return
        commit = self._commit(repo, unquote(rest[0]) if rest else "main")
        if verb == "tree":
            self._send_tree(repo.commits[commit], unquote("/".join(rest[1:])), query)
            return
        name = repo_id.partition("/")[2]
        self._send_json({"id": name, "sha": commit, "private": False, "tags": []})

    def _send_tree(self, files: dict[str, _File], folder: str, query: dict[str, list[str]]) -> None:
        recursive = query.get("recursive", [""])[0].lower() == "true"
        start = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if not path.startswith(start):
                continue
            below = path[len(start) :].split("/")
            for depth in range(1, len(below) if recursive else min(2, len(below))):
                parent = start + "/".join(below[:depth])
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if recursive or len(below) == 1:
                entries[path] = _entry(path, file)
        at = int(query.get("cursor", ["0"])[0])
        page = list(entries.values())[at : at + self.server.hub._page_size]
        following = at + len(page)
        headers = {}
        if following < len(entries):
            address = f"{self.server.hub.url}{urlsplit(self.path).path}"
            flags = f"recursive={recursive}&expand=False&cursor={following}"
            headers["Link"] = f'<{address}?{flags}>; rel="next"'
        self._send_json(page, headers)

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        token = self._token()
        if repo.gated_to is not None and token not in repo.gated_to:
            status = 401 if token is None else 403
            raise _Error(status, "GatedRepo", f"Access to {repo_id} is restricted.")
        commit = self._commit(repo, revision)
        file = repo.commits[commit].get(path)
        if file is None:
            raise _Error(404, "EntryNotFound", "Entry not found")
        if not file.lfs:
            self._send_file(file, commit)
            return
        etag = file.etag
        if self._fault is not None and self._fault.etag is not None:
            etag = self._fault.etag
        name = repo_id.partition("/")[2]
        where = "/".join(quote(part, safe="") for part in (commit, name, path))
        headers = {
            "Location": f"{self.server.hub._cdn_url}/{where}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(file.size),
        }
        self._send(302, headers, b"")

    def _send_file(self, file: _File, commit: str) -> None:
        fault = self._fault or Fault("")
        start, end, status = 0, file.size, 200
        headers = {
            "ETag": f'"{fault.etag or file.etag}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start = int(asked.group(1))
            end = min(int(asked.group(2) or file.size - 1) + 1, file.size)
            if start >= end:
                headers["Content-Range"] = f"bytes */{file.size}"
                self._send(416, headers, b"")
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        if fault.body is not None:
            self._send(status, headers, fault.body[start:end])
            return
        self._send_head(status, headers, end - start)
        if self.command == "HEAD":
            return
        stop = end if fault.cut_after is None else min(end, start + fault.cut_after)
        with file.local.open("rb") as f:
            f.seek(start)
            while start < stop and (chunk := f.read(min(_CHUNK_BYTES, stop - start))):
                self.wfile.write(chunk)
                start += len(chunk)
        if start < end:
            self.wfile.flush()
            self.close_connection = True

    def _send_json(self, content: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._send_head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.server.hub.record(
            Request(
                self.command,
                unquote(self.path),
                self._token(),
                self.headers.get("Range"),
                status,
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _token(self) -> str | None:
        given: str | None = self.headers.get("Authorization")
        return None if given is None else given.removeprefix("Bearer ")


def _is_lfs(name: str, size: int) -> bool:
    return name.lower().endswith(_LFS_SUFFIXES) or size > _LFS_BYTES


def _file(path: Path, name: str | None = None) -> _File:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    lfs = _is_lfs(name or path.name, size)
    return _File(path, size, sha256.hexdigest(), git.hexdigest(), lfs)


def _entry(path: str, file: _File) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "oid": file.blob_id,
        "size": file.size,
    }
    if file.lfs:
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{file.sha256}\nsize {file.size}\n"
        ).encode()
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return entry


def _ref(name: str, kind: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def write(folder: Path, **sizes: int) -> Path:
    """Fills a folder with files of so many random bytes, the same each time."""
    for path, size in sizes.items():
        local = folder / path
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(random.Random(path).randbytes(size))
    return folder
