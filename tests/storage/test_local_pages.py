"""Who gets in where other machines reach a page; what a browser sees is tested with the pages."""

from __future__ import annotations

import argparse
import asyncio
import socket

import pytest
from starlette.responses import PlainTextResponse

from storage import local_pages


def answer(host: str, kind: str = "http") -> int:
    """The status of a request under the name `host`, where others are let in as `proxy.example`."""
    guarded = local_pages._TrustedHostsOrAddresses(
        PlainTextResponse("in"), allowed_hosts=["localhost", "proxy.example"]
    )
    scope = {"type": kind, "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    scope["extensions"] = {"websocket.http.response": {}}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guarded(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.1.7:8080", 200),
        ("10.0.0.1", 200),
        ("[fe80::1]:8080", 200),
        ("localhost:8080", 200),
        ("proxy.example", 200),
        ("evil.example", 400),
        ("192.168.1.7.evil.example", 400),
        ("[evil.example]", 400),
        ("", 400),
    ],
)
def test_others_may_call_by_addresses_and_by_names_that_are_known(kind, host, status):
    assert answer(host, kind) == status


def test_an_address_is_taken_before_anything_else(monkeypatch):
    with local_pages.listen("127.0.0.1", 0, "page") as listener:
        port = listener.getsockname()[1]
        assert local_pages.url(listener) == f"http://localhost:{port}/"
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(local_pages.AddressError) as error:
            local_pages.listen("127.0.0.1", port, "page")
        assert str(error.value) == (
            f"port {port} cannot be used (Address already in use): choose another one with --port, "
            "or ARGS='--port N' after make page"
        )
        assert local_pages._is_loopback(listener)
    with local_pages.listen("0.0.0.0", 0, "page") as listener:
        assert not local_pages._is_loopback(listener)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(local_pages.AddressError, match="nowhere is not an address of this machine"):
        local_pages.listen("nowhere", 8080, "page")


@pytest.mark.parametrize("text", ["0", "65536", "-1"])
def test_ports_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="between 1 and 65535"):
        local_pages.port_number(text)
