"""A stand-in for the Hugging Face Hub on loopback: repositories of models in memory, tokens, and refusals on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

WRITES, READS = "hf_writes", "hf_reads"  # tokens


@dataclass
class Repository:
    """A repository of models: whether it is private, and its files, with a hash of all as the commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """The commit."""
        content = [name.encode() + b"\0" + data for name, data in sorted(self.files.items())]
        return hashlib.sha1(b"\0".join(content)).hexdigest()


class Hub:
    """The server's state.

    Args:
        address: `http://127.0.0.1:PORT`.
    """

    def __init__(self, address: str) -> None:
        self.address, self.repositories, self.requests = address, dict[str, Repository](), list[str]()
        self.fails = 0  # status of every answer; 0: as it should be

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request."""
        self.requests.append(f"{method} {path}")
        if self.fails:
            return self.fails, {}, b'{"error": "on demand"}'
        if token not in ("", WRITES, READS):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        if path == "/api/validate-yaml":
            wrong = b"---" not in body
            return (400, {}, b'{"errors": [{"message": "no front matter"}]}') if wrong else (200, {}, b"{}")
        if method == "POST" and token != WRITES:
            return 403, {"X-Error-Message": "a read token"}, b"{}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                return 403, {"X-Error-Message": "not your namespace"}, b"{}"
            self.repositories[name] = Repository(asked["visibility"] == "private")
            return 200, {}, json.dumps({"url": f"{self.address}/{name}"}).encode()
        found = re.match(r"(?:/api/models)?/([^/]+/[^/]+)(.*)", path)
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not token):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return self._of(repository, found[1], found[2], body)

    def _of(self, repository: Repository, name: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return 200, {}, json.dumps({"files": files}).encode()
        if path.startswith("/commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repository.messages.append(value["summary"])
                elif line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    assert line["key"] == "deletedFile"
                    del repository.files[value["path"]]
            answer = {"commitUrl": f"{self.address}/{name}/commit/{repository.sha}", "commitOid": repository.sha}
            return 200, {}, json.dumps(answer).encode()
        if found := re.match(r"/resolve/[^/]+/(.+)", path):
            data = repository.files[found[1]]
            return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repository.sha}, data
        if path.startswith("/tree/"):
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in repository.files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        if path.startswith("/revision/") and path.removeprefix("/revision/") not in ("main", repository.sha):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = [{"rfilename": file} for file in repository.files]
        answer = {"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings}
        return 200, {}, json.dumps(answer).encode()


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A hub without repositories; ended with the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            path = self.path.partition("?")[0]
            status, headers, body = hub.answer(self.command, path, token, self.rfile.read(length))
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(hub: Hub, home: Path, patch: pytest.MonkeyPatch, token: str = WRITES) -> None:
    """Make this process speak to that hub alone, with a login and a cache of its own."""
    patch.setenv("HF_ENDPOINT", hub.address)
    patch.setenv("HF_TOKEN", token)
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # These are read from the environment when the library is imported, which other tests have done.
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
