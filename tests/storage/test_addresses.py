"""Which addresses hold secrets, what is said of them, and that what is offered instead works."""

from __future__ import annotations

import base64
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator

import pytest

from storage.addresses import SecretInAddressError, check_address, redacted
from storage.file_systems import open_address
from storage.folders import FolderError, open_folder

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "way"),
    [
        (f"http://me:{SECRET}@host/pictures.tar", ".netrc"),
        (f"https://{SECRET}@host:8443/a/b?c=d", ".netrc"),
        (f"HTTPS://me:{SECRET}@host", ".netrc"),
        (f"http://me:a/b/{SECRET}@host/x", ".netrc"),
        (f"http://me:a@{SECRET}@host/x", ".netrc"),
        (f"http://me:a?{SECRET}@host/x", ".netrc"),
        (f"simplecache::http://me:{SECRET}@host/x", ".netrc"),
        (f"zip://a.csv::https://me:{SECRET}@host/x.zip", ".netrc"),
        (f"hf://me:{SECRET}@datasets/org/name", "HF_TOKEN"),
        (f"hf://{SECRET}@org/name", "HF_TOKEN"),
        (f"gs://me:{SECRET}@bucket/x", "gcloud auth"),
        (f"s3://KEY:{SECRET}@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        (f"mysql://me:{SECRET}@host/db", "password_env=NAME"),
        (f"mysql://me@host/db?password={SECRET}", "password_env=NAME"),
        (f"ftp://me:{SECRET}@host/x", "FSSPEC_FTP_PASSWORD"),
        (f"grpc://me:{SECRET}@host:8500", "grpc://HOST:PORT"),
        (f"abfs://container:{SECRET}@account.net/x", "log-in of the library"),
        (f"vertex://p/l?endpoint=http://me:{SECRET}@host", ".netrc"),
        (f"https://h/x?a=b&X-Goog-Signature={SECRET}&X-Goog-Credential=me", "gs://BUCKET/PATH"),
        (f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}", "s3://BUCKET/PATH"),
        (f"https://h/x?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=1", "s3://BUCKET/PATH"),
        (f"https://a.blob.core.windows.net/c/x?sv=1&sig={SECRET}", "AZURE_STORAGE_SAS_TOKEN"),
        (f"https://host/x?access_token={SECRET}", "FSSPEC_HTTP"),
        (f"https://host/x?api-key={SECRET}", "FSSPEC_HTTP"),
        (f"https://host/x#token={SECRET}", "FSSPEC_HTTP"),
    ],
)
def test_an_address_with_a_secret_is_refused_with_the_way_and_without_the_secret(address, way):
    with pytest.raises(SecretInAddressError) as error:
        check_address(address)
    assert way in str(error.value)
    assert SECRET not in str(error.value)
    assert SECRET not in redacted(f"cannot open {address!r}, {{'u': \"{address}\"}} ({address})")


@pytest.mark.parametrize(
    "address",
    [
        "/home/me@work/pictures",
        "~/a:b@c",
        "file:///home/me@work/pictures",
        "http://host:8080/a@b/c?file=x.tar&download=true",
        "http://[::1]:8501/a@b",
        "hf://datasets/org/name@main",
        "hf://org/name@v1.0/folder",
        "hf://name@main",
        "org/name@main",
        "gs://bucket/a@b:c/x",
        "mysql://reader@host:3306/mlmd?password_env=PASSWORD",
        "sftp://me@host/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "github://org:repo@main/x",
        "zip://a.csv::http://host/x@y.zip",
        "a drawing of a fox, 3:4, in the manner of http://example.com",
        "",
    ],
)
def test_what_only_looks_alike_is_let_through_and_shown_as_it_is(address):
    check_address(address)
    assert redacted(address) == address


def test_only_the_secret_is_hidden():
    said = "GET http://me:pw@h/x?a=b&sig=s&c=d and mysql://u:p@h/db failed, see a@b"
    assert (
        redacted(said) == "GET http://***@h/x?a=b&sig=***&c=d and mysql://***@h/db failed, see a@b"
    )


def test_weights_at_such_an_address_are_refused():
    with pytest.raises(FolderError, match=r"^http://\*\*\*@host/w has a password, which"):
        open_folder(f"http://me:{SECRET}@host/w")


class _Guarded(http.server.BaseHTTPRequestHandler):
    """Gives a tar file to whoever has the right `Authorization`."""

    asked: list[str | None] = []
    content = b""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.asked.append(given)
        basic = f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
        if given not in (basic, f"Bearer {SECRET}"):
            self.send_error(401)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    _Guarded.content = packed.getvalue()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/pictures.tar"
        server.shutdown()


def test_a_password_of_an_http_server_comes_from_netrc(guarded, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    files, path = open_address(guarded)
    assert files.cat_file(path) == _Guarded.content


def test_a_token_of_an_http_server_comes_from_a_variable(guarded, monkeypatch):
    import fsspec

    monkeypatch.setenv("FSSPEC_HTTP", f'{{"headers": {{"Authorization": "Bearer {SECRET}"}}}}')
    configured: dict[str, dict[str, object]] = {}
    fsspec.config.set_conf_env(configured)
    monkeypatch.setattr(fsspec.config, "conf", configured)
    files, path = open_address(guarded)
    assert files.cat_file(path) == _Guarded.content
