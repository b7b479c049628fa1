"""Opens file systems with fsspec, by address."""

from __future__ import annotations

from typing import Any

import fsspec

from storage.addresses import check_address


def open_address(address: str) -> tuple[Any, str]:
    """Returns the file system of an address, and the path in it.

    User and password for an http server come from `.netrc`.

    Raises:
        SecretInAddressError: `address` contains a secret.
        ImportError: Its file system needs another package.
        ValueError: The address cannot be opened.
    """
    check_address(address)
    options = {}
    if address.lower().startswith(("http://", "https://")):
        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        # Otherwise aiohttp ignores .netrc and the proxy variables.
        options["client_kwargs"] = {"trust_env": True, **configured}
    files, path = fsspec.core.url_to_fs(address, **options)
    return files, path
