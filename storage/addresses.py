"""Addresses that contain a secret: detected, refused and never shown.

The settings of a run are recorded in ML Metadata, in `config.yaml`, in logs and on pages. So an
address with a password or a signature is refused everywhere, with the way that is meant for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from storage.user_errors import UserError

_HIDDEN = "***"
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>\S*)")
_AUTHORITY = re.compile(r"""[^/?#"'<>]*""")
_PORT = re.compile(r"[0-9]*")
_PARAMETER = re.compile(r"""(?<=[?&;#])(?P<name>[^=&;#?"'<>]+)=(?P<value>[^&;#"'<>]*)""")
# The user is part of the address; a password is not.
_WITH_USER = frozenset({"mysql", "sftp", "ssh", "hdfs", "webhdfs"})
# The part before @ is a container, or an owner with a repository.
_WITH_CONTAINER = frozenset({"abfs", "abfss", "adl", "wasb", "wasbs"})
_WITH_OWNER = frozenset({"git", "github"})
_SECRET_NAMES = frozenset({"auth", "jwt", "key", "pass", "policy", "pwd", "sas", "sig"})
_SECRET_PARTS = (
    "accessid", "accesskey", "apikey", "authorization", "credential", "password", "passwd",
    "secret", "signature", "token",
)  # fmt: skip

_GOOGLE = (
    "log in with `gcloud auth application-default login`, or name a key file by "
    "GOOGLE_APPLICATION_CREDENTIALS"
)
_AMAZON = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
_NETRC = "put user and password into ~/.netrc, as `machine HOST login USER password PASSWORD`"
_HEADER = """set FSSPEC_HTTP='{"headers": {"Authorization": "Bearer TOKEN"}}', or fetch it first"""
_WAYS = {
    "ftp": "set FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD",
    "gcs": _GOOGLE,
    "grpc": "give grpc://HOST:PORT; a server that requires a log-in needs its own proxy",
    "grpcs": "give grpcs://HOST:PORT; a server that requires a log-in needs its own proxy",
    "gs": _GOOGLE,
    "hf": "log in with `hf auth login`, or set HF_TOKEN",
    "http": _NETRC,
    "https": _NETRC,
    "mysql": "give mysql://USER@HOST/DATABASE?password_env=NAME, where NAME is the environment "
    "variable that holds it",
    "s3": _AMAZON,
    "sftp": "set FSSPEC_SFTP_PASSWORD",
}
_AZURE = "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_SAS_TOKEN"
# Recognised by a parameter that only the signatures of this store have.
_SIGNED_BY = (
    (r"x-goog-.*|googleaccessid", f"give gs://BUCKET/PATH, and {_GOOGLE}"),
    (r"x-amz-.*|awsaccesskeyid", f"give s3://BUCKET/PATH, and {_AMAZON}"),
    (r"sig", f"give abfs://CONTAINER/PATH, and {_AZURE}"),
)


class SecretInAddressError(UserError):
    """An address contains a secret; the message is one line, without the secret."""


def check_address(address: str) -> None:
    """Raises a `SecretInAddressError` if `address` contains a user part or a signature."""
    for scheme, rest in _addresses(address):
        user = _user_part(scheme, rest)
        signed = [name.lower() for name in _secret_parameters(rest)]
        if not user and not signed:
            continue
        if user:
            what = "a password" if ":" in user else "a user part"
            way = _WAYS.get(scheme, "use the log-in of the library that opens it")
        else:
            what = "a secret in its query"
            way = _way_of_signed(scheme, signed)
        raise SecretInAddressError(
            f"{redacted(address)} has {what}, which would be recorded and shown: leave it out, and "
            f"{way}"
        )


def redacted(text: str) -> str:
    """`text` with the user parts and secret parameters of all its addresses hidden."""
    if "://" not in text:
        return text

    def without(match: re.Match[str]) -> str:
        rest = match["rest"]
        user = _user_part(match["scheme"].lower(), rest)
        rest = f"{_HIDDEN if user else ''}{redacted(rest[len(user) :])}"
        rest = _PARAMETER.sub(
            lambda p: f"{p['name']}={_HIDDEN}" if _is_secret(p["name"]) else p[0], rest
        )
        return f"{match['scheme']}://{rest}"

    return _ADDRESS.sub(without, text)


def _addresses(text: str) -> Iterator[tuple[str, str]]:
    """Scheme and rest of each address, including nested ones, as fsspec chains them."""
    for match in _ADDRESS.finditer(text):
        yield match["scheme"].lower(), match["rest"]
        yield from _addresses(match["rest"])


def _user_part(scheme: str, rest: str) -> str:
    """The secret part before @; "" if there is none."""
    [authority] = _AUTHORITY.findall(rest)[:1]
    user, at, _ = authority.rpartition("@")
    if not at:
        # A password with a slash, which should be written as %2F, ends the authority too soon.
        name, colon, port = authority.partition(":")
        chained = port.startswith(":")
        if colon and not chained and not name.startswith("[") and not _PORT.fullmatch(port):
            user, at, _ = rest.rpartition("@")
    if not at or scheme in _WITH_OWNER:
        return ""
    if ":" not in user:
        if scheme in _WITH_USER | _WITH_CONTAINER:
            return ""
        # A name at a revision; the hub's own check gives a better message.
        if scheme == "hf" and authority == rest:
            return ""
    return user


def _secret_parameters(rest: str) -> list[str]:
    return [p["name"] for p in _PARAMETER.finditer(rest) if _is_secret(p["name"]) and p["value"]]


def _is_secret(name: str) -> bool:
    lower = name.lower()
    if lower.endswith("_env"):
        return False
    plain = re.sub("[-_.]", "", lower)
    return plain in _SECRET_NAMES or any(part in plain for part in _SECRET_PARTS)


def _way_of_signed(scheme: str, names: list[str]) -> str:
    if scheme not in ("http", "https"):
        return _WAYS.get(scheme, "use the log-in of the library that opens it")
    for pattern, way in _SIGNED_BY:
        if any(re.fullmatch(pattern, name) for name in names):
            return way
    return _HEADER
