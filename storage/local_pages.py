"""The shell of our pages in a browser: NiceGUI, on this machine only.

Access is decided here, once for all pages. A page of another site cannot reach ours under its own
name (DNS rebinding), talk to our socket, or show our pages in a frame. Our pages load nothing from
elsewhere and do not reveal where a link was followed from.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import ipaddress
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.user_errors import UserError

if TYPE_CHECKING:
    from nicegui import ui

HOST = "127.0.0.1"
"""The address that only this machine can reach."""

_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    # NiceGUI's pages use inline scripts, and templates that Vue compiles in the browser.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# NiceGUI's own has a button and a field without names, one within the other, and numbers that are
# always zero.
_UPLOAD_HEADER = """\
<div class="row items-center no-wrap q-pa-sm">
  <label class="col relative-position cursor-pointer">{label}<q-uploader-add-trigger /></label>
  <q-btn flat dense round icon="add_box" aria-label="Choose a picture" @click="props.pickFiles" />
</div>
"""
_NOT_FOUND = """\
<!DOCTYPE html>
<html lang="en-US">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Not found - {title}</title>
<style>
body {{
  margin: 15vh auto 0; padding: 0 1rem; max-width: 40rem; font: 16px/1.5 system-ui, sans-serif;
}}
p {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<h1>There is no such page</h1>
<p>There is nothing at <code>{path}</code>.</p>
<p><a href="/">{title}</a></p>
</main>
</body>
</html>
"""


class AddressError(UserError):
    """The server cannot listen at an address; the message is one line for the user."""


def port_number(text: str) -> int:
    """Parses a port on a command line; for `argparse`."""
    number = int(text)
    if not 0 < number < 1 << 16:
        raise argparse.ArgumentTypeError("it must be between 1 and 65535")
    return number


def listen(host: str, port: int, target: str) -> socket.socket:
    """Listens at an address; connections wait for `serve`.

    Args:
        host: The machine's name or address; `0.0.0.0` for all its addresses.
        port: The port.
        target: The `make` target of the page.

    Raises:
        AddressError: The address is in use, or does not belong to this machine.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressError(
            f"{host} is not an address of this machine ({error.strerror}): choose another --host"
        ) from None
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise AddressError(
            f"port {port} cannot be used ({reason}): choose another one with --port, or "
            f"ARGS='--port N' after make {target}"
        ) from None


def url(listener: socket.socket) -> str:
    """The URL for a browser on this machine."""
    return f"http://localhost:{listener.getsockname()[1]}/"


def name_upload(upload: ui.upload, label: str) -> None:
    """Gives a place where a picture is dropped a header that a screen reader can read."""
    upload.add_slot("header", _UPLOAD_HEADER.format(label=html.escape(label)))


def serve(
    title: str,
    listener: socket.socket,
    *,
    trusted_hosts: Sequence[str] = (),
    open_window: bool = False,
) -> None:
    """Serves NiceGUI's pages until the process is interrupted.

    Args:
        title: The title of the pages.
        listener: From `listen`. If other machines can reach it, they may use this machine's
            addresses and its name.
        trusted_hosts: Further names that they may use.
        open_window: Whether to open a browser.
    """
    import uvicorn
    from fastapi import FastAPI
    from nicegui import app, core, ui

    def not_found(request: Request, error: Exception) -> Response:
        names = {"title": html.escape(title), "path": html.escape(request.url.path)}
        return HTMLResponse(_NOT_FOUND.format(**names), 404)

    app.add_exception_handler(404, not_found)
    # Only the page's own origin; NiceGUI allows every origin.
    core.sio.eio.cors_allowed_origins = None
    core.sio.eio.cors_credentials = False
    shell = FastAPI(openapi_url=None)
    if _is_loopback(listener):
        shell.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_OWN_NAMES, *trusted_hosts])
    else:
        names = [*_OWN_NAMES, socket.gethostname().lower(), *trusted_hosts]
        shell.add_middleware(_TrustedHostsOrAddresses, allowed_hosts=names)
    shell.add_middleware(_WithHeaders)
    ui.run_with(shell, title=title, language="en-US", show_welcome_message=False)
    if open_window:
        threading.Thread(target=webbrowser.open, args=[url(listener)], daemon=True).start()
    config = uvicorn.Config(shell, log_level="warning", ws="wsproto")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class _TrustedHostsOrAddresses(TrustedHostMiddleware):
    """Also allows any IP address: only a name can be pointed here by somebody else."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "")
            bare = host[1:].partition("]")[0] if host[:1] == "[" else host.partition(":")[0]
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(bare)
                return await self.app(scope, receive, send)
        return await super().__call__(scope, receive, send)


class _WithHeaders:
    """Sets the protective headers if a response does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
