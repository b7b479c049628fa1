"""Where a picture comes from: its marks, compared with the store and the release.

Marks can be copied, edited and forged. They are believed only as far as the release in the store
has the same digests; whether it draws the same pixels is another question, which `serving.redraw`
answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.lineage import history, tracing
from pipeline.lineage.model import Artifact, LineageError
from pipeline.lineage.store import Store
from storage import content_credentials, filesystem
from storage.commands import CHECKOUT
from storage.content_credentials import CredentialsError
from storage.errors import one_line
from storage.picture_marks import (
    Found,
    Marks,
    MarksError,
    difference_in_words,
    network_digests,
    read,
)

_RELEASES = "releases"


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one comparison.

    Attributes:
        name: What was compared.
        holds: Whether both sides agree; `None` if unknown.
        said: The result, in words.
    """

    name: str
    holds: bool | None
    said: str


@dataclasses.dataclass(frozen=True)
class Whence:
    """Where a picture comes from.

    Attributes:
        picture: Its name.
        marks: The marks of each picture in it.
        checks: The checks and their results.
        trace: What made the release, or the model, that drew it.
    """

    picture: str
    marks: tuple[Marks, ...]
    checks: tuple[Check, ...]
    trace: tracing.Trace

    def with_check(self, check: Check) -> Whence:
        """A copy with one more check."""
        return dataclasses.replace(self, checks=(*self.checks, check))


def whence(store: Store, picture: str, contents: bytes, roots: Sequence[str]) -> Whence:
    """Finds out where a picture comes from.

    Args:
        store: Where to look.
        picture: Its name.
        contents: Contents of its file.
        roots: Folders whose files may be read.

    Raises:
        LineageError: It has no marks, they cannot be read, or they do not name a release or model
            of this store.
    """
    try:
        found = read(contents)
    except MarksError as error:
        raise LineageError(f"{picture}: {error}") from None
    if not found.pictures:
        raise LineageError(_unmarked(picture, found))
    if len({(m.release, m.training_id, tuple(m.networks.items())) for m in found.pictures}) > 1:
        raise LineageError(f"{picture}: its marks name several releases for one file")
    marks = found.pictures[0]
    checks = [
        Check(
            "pixels",
            found.is_as_marked,
            "the same as when marked"
            if found.is_as_marked
            else "not as marked: the picture was changed since, or has another picture's marks",
        ),
        Check(
            "text for others",
            found.agrees,
            "says the same"
            if found.agrees
            else f"is gone ({_KEPT})"
            if found.parameters is None
            else "says something else: one of the two was written by hand",
        ),
    ]
    if content_credentials.has_manifest(contents):
        checks.append(_signature(contents))
    subject, more = _drawn_by(store, picture, marks, roots)
    trace = tracing.trace(store, f"artifact:{subject.id}", roots)
    return Whence(picture, found.pictures, (*checks, *more), trace)


def _signature(contents: bytes) -> Check:
    try:
        found = content_credentials.read(contents)
    except CredentialsError as error:
        return Check("signature", None, str(error))
    if found.valid:
        return Check("signature", True, f"valid, by {found.signer}, whom you may or may not know")
    return Check("signature", False, f"invalid, by {found.signer}: {', '.join(found.faults)}")


def drawn_again(
    found: Whence, file: str, image: str | None = None, mask: str | None = None
) -> Check:
    """Draws a picture again, in another process, and checks whether it is the same.

    Args:
        found: Where the picture comes from.
        file: The picture.
        image: File of the picture that it was drawn from.
        mask: File of the mask.
    """
    pushed = found.trace.subject.properties.get("pushed_destination")
    where = (
        ("--model", found.trace.subject.uri)
        if pushed is None
        else ("--serving-dir", str(pushed), "--version", str(found.trace.release))
    )
    given = [
        word
        for flag, name in (("--image", image), ("--mask", mask))
        if name is not None
        for word in (flag, name)
    ]
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "serving.redraw", file, "--json", *where, *given],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1) or not done.stdout:
        lines = done.stderr.strip().removeprefix("error: ").splitlines()
        said = lines[-1] if lines else f"status {done.returncode}"
        return Check("drawn again", None, f"not compared: {said}")
    drawn = json.loads(done.stdout)
    mean = sum(one["mean"] for one in drawn) / len(drawn)
    most = max(one["most"] for one in drawn)
    return Check("drawn again", not most, difference_in_words(mean, most))


def read_picture(picture: str) -> bytes:
    """Reads a picture file, local or remote.

    Raises:
        LineageError: It cannot be read.
    """
    try:
        return filesystem.read_bytes(picture)
    except OSError as error:
        raise LineageError(f"{picture} cannot be read: {one_line(error)}") from None


_KEPT = "whatever changed the file kept only the marks"


def _unmarked(picture: str, found: Found) -> str:
    said = f"{picture} carries no marks of this project, so it is unknown what drew it"
    if found.parameters is not None:
        begins = " ".join(found.parameters.split())[:80]
        return f"{said}; another program's text in it begins {begins!r}"
    if found.says_generated:
        return f"{said}; its XMP says that a trained model made it"
    return f"{said}: programs that save a picture again may drop them"


def _drawn_by(
    store: Store, picture: str, marks: Marks, roots: Sequence[str]
) -> tuple[Artifact, list[Check]]:
    """The release or the model that the marks name, and the checks of it."""
    if marks.release is None:
        return _model(store, picture, marks), []
    pushed = store.artifacts(store.artifacts_with("pushed_version", str(marks.release)))
    if not pushed:
        raise LineageError(
            f"{picture} says that release {marks.release} drew it"
            f"{_of_training(marks)}, but {store.name} has no such release: it is from another "
            "store, or the marks are forged"
        )
    if not marks.networks and marks.training_id is None:
        # A server reports only its version; if several releases have it, the user chooses.
        subject = tracing.find_artifact(store, f"release:{marks.release}")
        said = f"only the number {marks.release}, from a server: it may be from another store"
        return subject, [Check("release", None, said)]
    reasons = []
    for one in pushed:
        checks = [_training(store, one, marks), _networks(one, marks, roots)]
        if all(check.holds is not False for check in checks):
            return one, checks
        reasons += [check.said for check in checks if check.holds is False]
    raise LineageError(
        f"{picture} says that release {marks.release} drew it, but the one in {store.name} is a "
        f"different release: {'; '.join(dict.fromkeys(reasons))}. It is from another store, or the "
        "marks are forged"
    )


def _model(store: Store, picture: str, marks: Marks) -> Artifact:
    found: list[int] = []
    if marks.training_id is not None:
        models = set(store.artifacts_of_type("Model"))
        named = store.artifacts_with("training_id", marks.training_id)
        found = [artifact for artifact in named if artifact in models]
    if not found:
        raise LineageError(
            f"{picture} says that no release drew it{_of_training(marks) or ', and names no model'}"
            f", and {store.name} has no such model"
        )
    return store.artifact(found[0])


def _training(store: Store, pushed: Artifact, marks: Marks) -> Check:
    model = history.model_of(store, pushed)
    known = None if model is None else model.properties.get("training_id")
    if known is None or marks.training_id is None:
        return Check("training", None, "not named on both sides")
    if known == marks.training_id:
        return Check("training", True, f"{known}, as in the store")
    return Check("training", False, f"its training is {known}, not {marks.training_id}")


def _networks(pushed: Artifact, marks: Marks, roots: Sequence[str]) -> Check:
    if not marks.networks:
        return Check("networks", None, "not named: a server does not report their digests")
    destination = str(pushed.properties.get("pushed_destination", ""))
    file = Path(destination, _RELEASES, f"{marks.release}.json")
    inside = any(file.resolve().is_relative_to(Path(root).resolve()) for root in roots)
    if "://" in destination or not inside:
        return Check("networks", None, "not compared: the release's file is not in these folders")
    try:
        digests = network_digests(json.loads(file.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Check("networks", None, f"not compared: {file} is missing or damaged")
    differing = [name for name, digest in marks.networks.items() if digests.get(name) != digest]
    if differing:
        return Check("networks", False, f"different digests for its {' and '.join(differing)}")
    return Check("networks", True, "have the digests of the release")


def _of_training(marks: Marks) -> str:
    return "" if marks.training_id is None else f" (training {marks.training_id})"
