"""Reads tar files as streams, so that neither their size nor their compression matters."""

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
    """A file in an archive; its content is available until the next member is requested.

    Attributes:
        path: Its path in the archive.
        info: Its header in the archive.
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
        """The rest of the name after that dot, in lower case."""
        return posixpath.basename(self.path).partition(".")[2].lower()

    @property
    def is_link(self) -> bool:
        """Whether it is a link to another file."""
        return self.info.islnk() or self.info.issym()

    def content(self) -> bytes:
        """The content of the file.

        Raises:
            DatasetError: The archive is damaged.
        """
        return self.archive.content(self.info)


def members_of(files: Files, tar: str, *, peek: bool = False) -> Generator[Member, None, None]:
    """The files in an archive that are not hidden; see `_Archive` for the errors it raises."""
    with files.peek(tar) if peek else files.open(tar) as f:
        archive = _Archive(files, tar, f)
        while (info := archive.next()) is not None:
            path = posixpath.normpath(info.name)
            if (info.isreg() or info.islnk() or info.issym()) and not is_hidden(path):
                yield Member(path, info, archive)


class _Archive:
    """A tar file, read once from front to back; raises `DatasetError` if it is damaged."""

    def __init__(self, files: Files, path: str, f: IO[bytes]) -> None:
        self._where = f"{path} in dataset {files.shown!r}"
        self._count = 0
        self._last = ""
        with self._checked():
            # Unlike tarfile, these streams notice a missing end and a wrong checksum.
            self._stream = compression.unpacked(f) or f
            # The list of members is not part of its documented interface.
            self._tar: Any = tarfile.open(  # noqa: SIM115
                fileobj=self._stream,
                mode="r|",
                tarinfo=_TarInfo,
                encoding="utf-8",
                errors="surrogateescape",
            )

    def next(self) -> tarfile.TarInfo | None:
        """The next member; `None` after the last."""
        # tarfile has already looked for the first member, and cannot do so again.
        is_empty = self._count == 0 and not self._tar.members
        with self._checked():
            info: tarfile.TarInfo | None = None if is_empty else self._tar.next()
            if info is None:
                self._check_rest()
            else:
                self._count += 1
                self._last = info.name
        # Otherwise tarfile keeps all members in memory.
        self._tar.members.clear()
        return info

    def content(self, info: tarfile.TarInfo) -> bytes:
        """The member's content."""
        with self._checked():
            f = self._tar.extractfile(info)
            return b"" if f is None else f.read()

    def _check_rest(self) -> None:
        """Reads the rest after the end, which also makes gzip and the like verify checksums."""
        rest = cast(IO[bytes], self._tar.fileobj)
        while chunk := rest.read(_REST_BYTES):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("data follows its end: are these several archives in one?")

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            how_far = (
                f" after {self._count} files, the last {shown_path(self._last)!r}"
                if self._count
                else ""
            )
            raise DatasetError(
                f"{self._where} cannot be read{how_far}: {one_line(error)}"
            ) from error


class _TarInfo(tarfile.TarInfo):
    """A member; raises an error for a broken header, which tarfile would take for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:  # type: ignore[override]
        try:
            return cast(_TarInfo, super().fromtarfile(tarfile_))
        except tarfile.HeaderError as error:
            # Two blocks of zeros, the proper end.
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"{one_line(error)}: it is cut off or damaged") from error
