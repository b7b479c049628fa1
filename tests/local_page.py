"""What holds for every page that we serve on this machine: nobody else gets in."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Sequence

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport="
FOREIGN_HOSTS = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.1.2.3")
FOREIGN_ORIGINS = ("http://evil.example", "http://localhost.evil.example", "https://{host}", "null")


def fetch(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers with lower-case names, and content; of an upgrade, no content."""
    parts = urllib.parse.urlsplit(address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=names)
        response = connection.getresponse()
        content = "" if response.status == 101 else response.read().decode("utf-8", "replace")
        return response.status, {n.lower(): v for n, v in response.getheaders()}, content
    finally:
        connection.close()


def handshake(address: str, **headers: str) -> int:
    """The status that the server answers a websocket's handshake with."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    websocket = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
    return fetch(address, f"{SOCKET}websocket", **upgrade, **websocket, **headers)[0]


def check_nobody_else_gets_in(address: str) -> None:
    """Holds a page's server against requests under another name, from another site, in a frame."""
    own = urllib.parse.urlsplit(address).netloc
    for host in FOREIGN_HOSTS:
        assert fetch(address, "/", Host=host)[0] == 400, host
        assert fetch(address, f"{SOCKET}polling", Host=host)[0] == 400, host
        assert handshake(address, Host=host) in (400, 403), host
    for origin in (text.format(host=own) for text in FOREIGN_ORIGINS):
        status, headers, content = fetch(address, f"{SOCKET}polling", Origin=origin)
        assert (status, "sid" in content) == (400, False), origin
        assert not [name for name in headers if name.startswith("access-control-")], origin
        assert handshake(address, Origin=origin) in (400, 403), origin
        assert "access-control-allow-origin" not in fetch(address, "/", Origin=origin)[1], origin
    status, headers, content = fetch(address, f"{SOCKET}polling", Origin=f"http://{own}")
    assert (status, headers["access-control-allow-origin"]) == (200, f"http://{own}")
    assert json.loads(content[1:])["sid"]
    assert handshake(address, Origin=f"http://{own}") == 101
    for path in ("/", "/no/such/page", f"{SOCKET}polling"):
        headers = fetch(address, path)[1]
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'", path
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert headers["x-frame-options"] == "DENY", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["x-content-type-options"] == "nosniff", path


def check_unknown_address(address: str, title: str) -> None:
    """An address that leads nowhere is answered by a page of ours, which leads back."""
    status, headers, content = fetch(address, "/no/such/<page>?q=1")
    assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<h1>There is no such page</h1>" in content
    assert "/no/such/&lt;page&gt;" in content
    assert '<html lang="en' in content
    assert f'<a href="/">{title}</a>' in content
    assert fetch(address, "/favicon.ico")[0] == 200


def check_frame(page, address: str) -> None:
    """No page of another site shows ours in a frame."""
    page.set_content(f'<iframe src="{address}/"></iframe>')
    [frame] = page.main_frame.child_frames
    frame.wait_for_load_state()
    assert frame.locator("#app").count() == 0
    assert frame.url.startswith("chrome-error:")


def check_port_is_taken(address: str, command: Sequence[str], target: str, folder: str) -> None:
    """A second server at the same port says one line, and not that it is ready."""
    port = urllib.parse.urlsplit(address).port
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, *command, "--port", str(port)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr == (
        f"error: port {port} cannot be used (Address already in use): choose another one with "
        f"--port, or ARGS='--port N' after make {target}\n"
    )
