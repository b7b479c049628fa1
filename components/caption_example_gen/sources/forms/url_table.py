"""Tables with the URLs of pictures, which are not fetched here."""

from __future__ import annotations

from components.caption_example_gen.sources.base import DatasetError, Source
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.forms.table import tables_of
from components.caption_example_gen.sources.image_table import find_table, url_column


class UrlTable(Form):
    """Tables with a column of URLs, without pictures; the error says what to do."""

    kind = "url-table"
    shown = "lists of URLs (img2dataset fetches their pictures)"
    is_last = True

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        if look.pictures:
            return None
        found = tuple(sorted(path for path, records in tables_of(look) if url_column(records)))
        return Found(found, f"{counted(len(found), 'table')} of URLs") if found else None

    def open(self, look: Look, found: Found) -> Source:
        """Raises the error."""
        records = dict(tables_of(look))
        find_table(((p, records[p]) for p in found.files), look.spec, shown=look.files.shown)
        raise DatasetError(f"dataset {look.files.shown!r} has no pictures, only their URLs")
