"""Checks what a run on Vertex AI needs before anything is compiled, uploaded or started.

A check that fails says in one line what is missing and how to get it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import google.auth
import google.auth.exceptions
import requests
from google.api_core import exceptions, retry
from google.auth.credentials import Credentials
from google.auth.transport.requests import Request
from google.cloud.storage import Client

from pipeline.config import ConfigError
from pipeline.vertex.config import VertexConfig

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_SECONDS = 20.0
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
# A registry on this machine uses plain HTTP, as with Docker.
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$")
# What begins the names of the regions in a multi-region.
_MULTI_REGIONS = {"ASIA": "asia-", "EU": "europe-", "US": "us-"}
# Other registries do not get the credentials.
_GOOGLE_REGISTRY = re.compile(r"(^|[.-])(docker\.pkg\.dev|gcr\.io)$")
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A project that a run can be submitted to.

    Attributes:
        vertex: The settings, with the project and the image's digest filled in.
        credentials: The credentials to use.
        notes: What to tell the user about it.
    """

    vertex: VertexConfig
    credentials: Credentials
    notes: tuple[str, ...] = ()

    @property
    def project(self) -> str:
        """The project's id."""
        assert self.vertex.project is not None
        return self.vertex.project


def check_config(vertex: VertexConfig) -> None:
    """Raises a `ConfigError` if a setting that compiling needs is missing."""
    if vertex.pipeline_root is None:
        raise ConfigError(
            "there is no place to write to: give --pipeline-root gs://BUCKET/FOLDER, in a bucket "
            f"in {vertex.region}"
        )
    if vertex.image is None:
        raise ConfigError(
            "there is no container image: build one as described in docs/vertex.md, and give "
            "--image REGISTRY/NAME:TAG or @sha256:DIGEST"
        )
    for name, given in (
        ("workers", vertex.workers > 1 and f"= {vertex.workers}"),
        ("spot", vertex.spot and "= true"),
        ("dataflow", vertex.dataflow and "= true"),
    ):
        if given and vertex.project is None:
            raise ConfigError(f"vertex.{name} {given} needs the project's id: give --project")


def is_pinned(image: str) -> bool:
    """Whether an image is named by its digest."""
    return _DIGEST.search(image) is not None


def log_in(vertex: VertexConfig) -> Cloud:
    """Looks for credentials and a project.

    Raises:
        ConfigError: There are none, or the credentials are not accepted.
    """
    try:
        credentials, project = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise ConfigError(
            f"there are no Google Cloud credentials ({_first_line(error)}): run `gcloud auth "
            "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from None
    project = vertex.project or project
    if project is None:
        raise ConfigError("there is no project: give --project, or vertex.project in a --config")
    try:
        credentials.refresh(Request())
    except google.auth.exceptions.GoogleAuthError as error:
        raise ConfigError(
            f"the Google Cloud credentials are not accepted ({_first_line(error)}): log in again "
            "with `gcloud auth application-default login`"
        ) from None
    return Cloud(dataclasses.replace(vertex, project=project), credentials)


def connect(vertex: VertexConfig) -> Cloud:
    """Looks for credentials, project, bucket and image.

    Raises:
        ConfigError: One of them is missing or not accessible.
    """
    cloud = log_in(vertex)
    # Both folders may be in one bucket, of which is told once.
    notes = dict.fromkeys(
        _check_bucket(folder, cloud.project, vertex.region, cloud.credentials)
        for folder in (vertex.pipeline_root, vertex.serving_dir)
        if folder is not None
    )
    assert vertex.image is not None
    image = pinned_image(vertex.image, cloud.credentials)
    return dataclasses.replace(
        cloud,
        vertex=dataclasses.replace(cloud.vertex, image=image),
        notes=tuple(filter(None, notes)),
    )


def _check_bucket(folder: str, project: str, region: str, credentials: Credentials) -> str:
    """Looks for a folder's bucket; returns what to tell the user about its place, or ""."""
    name = folder.removeprefix("gs://").partition("/")[0]
    try:
        bucket = Client(project=project, credentials=credentials).get_bucket(
            name,
            timeout=_TIMEOUT_SECONDS,
            retry=retry.Retry(timeout=_TIMEOUT_SECONDS, predicate=_is_transient),
        )
    except exceptions.NotFound:
        raise ConfigError(
            f"the bucket gs://{name} does not exist: create it with `gcloud storage buckets create "
            f"gs://{name} --project={project} --location={region}`"
        ) from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise ConfigError(
            f"these credentials may not see the bucket gs://{name} ({_first_line(error)}): give "
            "them roles/storage.legacyBucketReader there, or name another one with --pipeline-root"
        ) from None
    except (exceptions.GoogleAPIError, requests.RequestException) as error:
        raise ConfigError(
            f"the bucket gs://{name} cannot be checked ({_first_line(error)}): try again"
        ) from None
    return location_note(name, bucket.location or "", bucket.data_locations or [], region)


def location_note(bucket: str, location: str, parts: Sequence[str], region: str) -> str:
    """What to tell the user about a bucket that is in another region than the run; else "".

    Args:
        bucket: Its name.
        location: Where it is, as Cloud Storage has it: a region, a multi-region or a pair.
        parts: The regions of a pair, if it has no name of its own.
        region: The run's region.
    """
    regions = [part.lower() for part in parts] or [location.lower()]
    within = _MULTI_REGIONS.get(location.upper())
    # Pairs have names like NAM4 and EUR4, of which no list is kept here.
    is_pair = not parts and within is None and "-" not in location
    if region in regions or is_pair or (within is not None and region.startswith(within)):
        return ""
    return (
        f"the bucket gs://{bucket} is in {', '.join(regions)}, but the run is in {region}: reading "
        "across regions is slow and costs extra; give --region, or a bucket, so that both agree"
    )


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, (exceptions.TooManyRequests, exceptions.ServerError))


def pinned_image(image: str, credentials: Credentials | None) -> str:
    """Looks up the digest of an image in its registry.

    Args:
        image: `HOST/NAME:TAG`, `HOST/NAME` or `HOST/NAME@sha256:DIGEST`.
        credentials: Credentials for Google's registries.

    Raises:
        ConfigError: The image does not exist, or may not be read.
    """
    host, slash, path = image.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        raise ConfigError(
            f"the image {image!r} does not name a registry: give its full name, such as "
            "REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG"
        )
    pinned = _DIGEST.search(path)
    if pinned:
        repository, reference = path[: pinned.start()], pinned[1]
    else:
        repository, _, reference = path.partition(":")
        reference = reference or "latest"
    scheme = "http" if _LOOPBACK.match(host) else "https"
    headers = {"Accept": _MANIFESTS}
    if credentials is not None and _GOOGLE_REGISTRY.search(host):
        headers["Authorization"] = f"Bearer {credentials.token}"
    try:
        answer = requests.head(
            f"{scheme}://{host}/v2/{repository}/manifests/{reference}",
            headers=headers,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=True,
        )
    except requests.RequestException as error:
        raise ConfigError(
            f"the image's registry {host} cannot be reached ({_first_line(error)}): check --image"
        ) from None
    if answer.status_code == 404:
        raise ConfigError(
            f"there is no image {image}: build it with `gcloud builds submit`, as described in "
            "docs/vertex.md, or name another with --image"
        )
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"these credentials may not read the image {image}: give them "
            "roles/artifactregistry.reader on its repository"
        )
    digest = answer.headers.get("Docker-Content-Digest", "")
    if not answer.ok or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ConfigError(
            f"the registry {host} does not return the digest of {image} (status "
            f"{answer.status_code}): give --image with @sha256:DIGEST"
        )
    return f"{host}/{repository}@{digest}"


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
