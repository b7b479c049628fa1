"""Secrets in the addresses of servers, serving directories and targets, and where they belong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving import generate, publish, pull
from serving.client import Generator
from serving.errors import ServingError
from serving.releases import __main__ as releases
from serving.serving_directory import ServingDirectory

SECRET = "hunter2"


class _Guarded(BaseHTTPRequestHandler):
    """Says of any model that version 3 is there, to whoever has the password."""

    def do_GET(self) -> None:
        basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {basic}"
        state = {"version": "3", "state": "AVAILABLE"}
        body = json.dumps({"model_version_status": [state]}).encode() if known else b"{}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_servers_password_comes_from_netrc(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(ServingError, match="status 401"):
        _ = Generator(server, retries=0).version
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    assert Generator(server, retries=0).version == 3
    netrc.write_text(f"{SECRET} 127.0.0.1\n")
    with pytest.raises(ServingError, match=rf"line 1 of {netrc} is not valid") as error:
        Generator(server)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (generate, ["a fox", "--out", "x.png", "--server", f"http://me:{SECRET}@host:8501"]),
        (generate, ["a fox", "--out", "x.png", "--server", f"grpc://{SECRET}@host:8500"]),
        (generate, ["a fox", "--out", "x.png", "--serving-dir", f"gs://me:{SECRET}@bucket/x"]),
        (generate, ["a fox", "--out", f"gs://me:{SECRET}@bucket/x.png"]),
        (publish, [f"hf://me:{SECRET}@org/name"]),
        (publish, [f"https://host/x?sig={SECRET}"]),
        (pull, [f"https://host/x?X-Amz-Signature={SECRET}"]),
        (pull, [f"http://me:{SECRET}@host/x"]),
        (releases, ["list", "--serving-dir", f"s3://me:{SECRET}@bucket/x"]),
        (releases, ["rollback", "--serving-dir", f"s3://me:{SECRET}@bucket/x"]),
    ],
)
def test_a_secret_in_an_address_is_refused_and_never_said(
    command, argv, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "leave it out, and " in said.err
    assert SECRET not in said.err


def test_a_serving_directory_is_not_opened_by_such_an_address():
    with pytest.raises(ServingError, match=r"^gs://\*\*\*@bucket/x has a password"):
        ServingDirectory(f"gs://me:{SECRET}@bucket/x")
