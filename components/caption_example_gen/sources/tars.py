"""Tar files read as streams, so that neither their size nor their compression matters."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Generator, Iterator
from typing import IO, Any, cast

from components.caption_example_gen.sources import compression
from components.caption_example_gen.sources.base import DatasetError, Files, is_hidden, shown_path
from storage.errors import one_line

_REST_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in an archive; its content can be had until the next one is asked for.

    Attributes:
        path: Where it is in the archive.
        info: What the archive says of it.
        archive: The archive.
    """

    path: str
    info: tarfile.TarInfo
    archive: _Archive

    @property
    def key(self) -> str:
        """The path up to the first dot of its last part."""
        folder, name = posixpath.split(self.path)
        return posixpath.join(folder, name.partition(".")[0])

    @property
    def suffix(self) -> str:
        """What follows that dot, in lower case."""
        return posixpath.basename(self.path).partition(".")[2].lower()

    @property
    def is_link(self) -> bool:
        """Whether its content is another file's."""
        return self.info.islnk() or self.info.issym()

    def content(self) -> bytes:
        """Its content.

        Raises:
            DatasetError: The archive is damaged.
        """
        return self.archive.content(self.info)


def members_of(files: Files, tar: str, *, peek: bool = False) -> Generator[Member, None, None]:
    """The files in an archive that are not hidden; see `_Archive` for what it raises."""
    with files.peek(tar) if peek else files.open(tar) as f:
        archive = _Archive(files, tar, f)
        while (info := archive.next()) is not None:
            path = posixpath.normpath(info.name)
            if (info.isreg() or info.islnk() or info.issym()) and not is_hidden(path):
                yield Member(path, info, archive)


class _Archive:
    """A tar file that is read once from front to back; raises `DatasetError` if it is damaged."""

    def __init__(self, files: Files, path: str, f: IO[bytes]) -> None:
        self._where = f"{path} in dataset {files.shown!r}"
        self._count = 0
        self._last = ""
        with self._checked():
            # Unlike tarfile, these streams notice a missing end and a wrong checksum.
            self._stream = compression.unpacked(f) or f
            # Its list of members is no part of its documented interface.
            self._tar: Any = tarfile.open(  # noqa: SIM115
                fileobj=self._stream,
                mode="r|",
                tarinfo=_TarInfo,
                encoding="utf-8",
                errors="surrogateescape",
            )

    def next(self) -> tarfile.TarInfo | None:
        """The next member; `None` after the last."""
        # tarfile has looked for the first one already, and cannot look again.
        is_empty = self._count == 0 and not self._tar.members
        with self._checked():
            info: tarfile.TarInfo | None = None if is_empty else self._tar.next()
            if info is None:
                self._check_rest()
            else:
                self._count += 1
                self._last = info.name
        # It keeps all members otherwise.
        self._tar.members.clear()
        return info

    def content(self, info: tarfile.TarInfo) -> bytes:
        """The member's content."""
        with self._checked():
            f = self._tar.extractfile(info)
            return b"" if f is None else f.read()

    def _check_rest(self) -> None:
        """Reads what follows the end, which also makes gzip and its like compare checksums."""
        rest = cast(IO[bytes], self._tar.fileobj)
        while chunk := rest.read(_REST_BYTES):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("more follows after its end: are these several archives?")

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            how_far = (
                f" on after {self._count} files, the last {shown_path(self._last)!r}"
                if self._count
                else ""
            )
            raise DatasetError(
                f"{self._where} cannot be read{how_far}: {one_line(error)}"
            ) from error


class _TarInfo(tarfile.TarInfo):
    """A member; where there should be one and is not, tarfile would take that for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:  # type: ignore[override]
        try:
            return cast(_TarInfo, super().fromtarfile(tarfile_))
        except tarfile.HeaderError as error:
            # Two blocks of zeros, as it should be.
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"{one_line(error)}: it is cut off or damaged") from error
