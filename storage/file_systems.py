"""File systems that fsspec opens, by address."""

from __future__ import annotations

from typing import Any

import fsspec

from storage.addresses import check_address


def open_address(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    User and password of an http server come from `.netrc`.

    Raises:
        SecretInAddressError: `address` has a secret in it.
        ImportError: Its file system needs another package.
        ValueError: It is no address that can be opened.
    """
    check_address(address)
    options = {}
    if address.lower().startswith(("http://", "https://")):
        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        # Otherwise aiohttp looks neither at .netrc nor at the variables that name a proxy.
        options["client_kwargs"] = {"trust_env": True, **configured}
    files, path = fsspec.core.url_to_fs(address, **options)
    return files, path
