"""The base class of forms that are JSON documents with records of pictures."""

from __future__ import annotations

import abc
import posixpath
from typing import Any

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import ImageTableSource, asked_for


class DocumentForm(Form):
    """Documents that are recognised by their content and read as tables.

    Attributes:
        of: What a document contains, for users: "COCO's captions".
    """

    of: str

    @abc.abstractmethod
    def is_one(self, document: Any) -> bool:
        """Whether a document is of this form."""

    @abc.abstractmethod
    def records(self, document: Any) -> list[dict[str, Any]]:
        """The records of a document of this form."""

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads every JSON document that may be one."""
        found = tuple(path for path, document in look.documents() if self.is_one(document))
        if not found:
            return None
        names = ", ".join(map(posixpath.basename, found[:3]))
        return Found(found, f"{counted(len(found), 'document')} of {self.of} ({names})")

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        tables = asked_for(look, found.files, self._interpreted)
        return ImageTableSource.open(
            look, tables, self.kind, interpret=self._interpreted, by_name=True
        )

    def _interpreted(self, document: Any) -> list[dict[str, Any]] | None:
        return self.records(document) if self.is_one(document) else None
