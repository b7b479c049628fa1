"""The pages in a browser, by NiceGUI; all its assets come out of its package.

They only read. Who gets in is the business of `storage.local_pages`. Content is rendered by
`pipeline.lineage.pages`; this module knows addresses, files and what makes a page live.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import html
import mimetypes
import socket
import tempfile
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from nicegui import app, events, ui

from pipeline.lineage import files, whence
from pipeline.lineage.affected import affected
from pipeline.lineage.history import DIGEST
from pipeline.lineage.locations import Location
from pipeline.lineage.model import LineageError
from pipeline.lineage.pages import (
    Pages,
    RunsView,
    Urls,
    affected_form,
    error_page,
    live_script,
    style,
)
from storage import local_pages

_POLL_SECONDS = 2.0
# Longer than a locked file is waited for.
_ANSWER_SECONDS = 60.0
# Files are other people's, too: they run nothing and load nothing from elsewhere.
_FILE_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
        "font-src data:; media-src 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
}
_SHOWN_KINDS = ("text/html", "image/", "text/plain", "application/json", "application/pdf")
_TEXT_SUFFIXES = (".jsonl", ".pbtxt", ".yaml", ".yml", ".log", ".csv", ".md", ".txt")
_THEME_COOKIE = "lineage-theme"
_NAVIGATION = (
    ("Runs", "/"),
    ("Releases", "/history"),
    ("Metrics", "/compare"),
    ("Impact", "/impact"),
    ("Whence", "/whence"),
    ("Affected", "/affected"),
)
# As many as the largest picture of the playground, in pixels of PNG.
_MAX_PICTURE_BYTES = 200 * 10**6
_Render = Callable[[Pages], str]


def serve(
    location: Location, listener: socket.socket, roots: Sequence[str], open_window: bool = False
) -> int:
    """Serves the pages of a store until the process is interrupted; returns the exit status.

    Args:
        location: The store, read anew for every page.
        listener: From `storage.local_pages.listen`.
        roots: Folders whose files may be shown.
        open_window: Whether to open a browser.
    """
    build(location, roots)
    shown = f"The lineage of {location.text} is at {local_pages.url(listener)} (Ctrl-C ends this)"
    print(shown, flush=True)
    local_pages.serve("Lineage", listener, open_window=open_window)
    return 0


def build(location: Location, roots: Sequence[str]) -> None:
    """Adds all pages to NiceGUI's app; see `serve`."""

    async def show(request: Request, title: str, render: _Render) -> None:
        await _show(location, roots, request, title, render)

    page = functools.partial(ui.page, response_timeout=_ANSWER_SECONDS)

    @page("/")
    async def runs(request: Request) -> None:
        await show(request, "Runs", lambda pages: pages.runs(_runs_view(request)))

    @page("/run/{run_name:path}")
    async def one_run(request: Request, run_name: str) -> None:
        await show(request, f"Run {run_name}", lambda pages: pages.run(run_name))

    @page("/step/{execution_id}")
    async def step(request: Request, execution_id: str) -> None:
        await show(
            request, f"Step {execution_id}", lambda pages: pages.step(_number(execution_id, "step"))
        )

    @page("/artifact/{artifact_id}")
    async def artifact(request: Request, artifact_id: str) -> None:
        await show(
            request,
            f"Artifact {artifact_id}",
            lambda pages: pages.artifact(_number(artifact_id, "artifact")),
        )

    @page("/trace/{artifact_id}")
    async def trace(request: Request, artifact_id: str) -> None:
        await show(
            request, f"Trace {artifact_id}", lambda pages: pages.trace(f"artifact:{artifact_id}")
        )

    @page("/release/{version:path}")
    async def release(request: Request, version: str) -> None:
        name = "latest" if version == "latest" else f"release:{version}"
        await show(request, f"Release {version}", lambda pages: pages.trace(name))

    @page("/history")
    async def history(request: Request) -> None:
        await show(request, "Releases", lambda pages: pages.history())

    @page("/diff")
    async def diff(request: Request, first: str = "latest", second: str = "latest") -> None:
        await show(request, "Differences", lambda pages: pages.diff(first, second))

    @page("/impact")
    async def impact(request: Request, what: str = "") -> None:
        await show(request, "Impact", lambda pages: pages.impact(what.strip()))

    @page("/whence")
    async def whence_page(request: Request) -> None:
        await _Whence(location, roots).build(request)

    @page("/affected")
    async def affected_page(request: Request, what: str = "") -> None:
        await _Affected(location, roots, what.strip()).build(request)

    @page("/compare")
    async def compare(request: Request, setting: str = "") -> None:
        await show(request, "Metrics", lambda pages: pages.compare(setting.split()))

    @app.get("/files/{artifact_id}/{name:path}")
    async def file(artifact_id: str, name: str) -> Response:
        return await asyncio.to_thread(_file, location, roots, artifact_id, name)


async def _show(
    location: Location, roots: Sequence[str], request: Request, title: str, render: _Render
) -> None:
    def content() -> tuple[str, int]:
        status = HTTPStatus.SERVICE_UNAVAILABLE
        try:
            with location.open() as store:
                status = HTTPStatus.NOT_FOUND
                return render(Pages(store, Urls(), roots)), HTTPStatus.OK
        except LineageError as error:
            return error_page(str(error), Urls()), status

    def stamp() -> Any:
        try:
            return location.stamp()
        except LineageError:
            return None

    seen = await asyncio.to_thread(stamp)
    shown, status = await asyncio.to_thread(content)
    client = ui.context.client
    client.status_code = status
    ui.page_title(f"{title} - lineage"[:120])
    ui.add_css(style())
    _frame(request)
    body = ui.html(shown, sanitize=False).classes("lineage-page").props("id=top")

    async def refresh() -> None:
        nonlocal seen, shown, status
        now = await asyncio.to_thread(stamp)
        # A file that was locked is free again without a change.
        if now == seen and status == HTTPStatus.OK:
            return
        seen = now
        fresh, status = await asyncio.to_thread(content)
        if fresh != shown and not client.is_deleted:
            shown = fresh
            body.set_content(fresh)

    ui.timer(_POLL_SECONDS, refresh)


class _Dropped(abc.ABC):
    """A page where a picture is dropped."""

    _title, _question, _label = "", "", ""

    def __init__(self, location: Location, roots: Sequence[str]) -> None:
        self._location = location
        self._roots = roots
        self._file_name, self._contents = "", b""

    async def build(self, request: Request) -> None:
        ui.page_title(f"{self._title} - lineage")
        ui.add_css(style())
        _frame(request)
        with ui.element("div").classes("lineage-page").props("id=top"):
            ui.html(f"<h1>{self._question}</h1>", sanitize=False)
            self._upload = ui.upload(
                auto_upload=True,
                max_file_size=_MAX_PICTURE_BYTES,
                on_upload=self._dropped,
                on_rejected=lambda: ui.notify(
                    f"that is not a picture, or it has more than {_MAX_PICTURE_BYTES // 10**6} MB",
                    type="negative",
                ),
            )
            self._upload.props('flat bordered accept="image/*"')
            local_pages.name_upload(self._upload, self._label)
            self._more()
            self._answer = ui.html("", sanitize=False).props("aria-live=polite").mark("answer")

    @abc.abstractmethod
    def _more(self) -> None:
        """Adds what else there is between picture and answer."""

    @abc.abstractmethod
    async def _told(self) -> None:
        """Answers."""

    async def _dropped(self, event: events.UploadEventArguments) -> None:
        self._file_name, self._contents = event.file.name, await event.file.read()
        self._upload.reset()
        await self._told()


class _Affected(_Dropped):
    """The page that says where a picture was used."""

    _title, _question = "Affected", "Where was this picture used?"
    _label = "Drop a picture, also one that was edited or converted"

    def __init__(self, location: Location, roots: Sequence[str], what: str) -> None:
        super().__init__(location, roots)
        self._what = what

    async def build(self, request: Request) -> None:
        await super().build(request)
        if self._what:
            await self._told()

    def _more(self) -> None:
        ui.html(affected_form(self._what, Urls()), sanitize=False)

    async def _told(self) -> None:
        self._answer.set_content(await asyncio.to_thread(self._asked))

    def _asked(self) -> str:
        try:
            with self._location.open() as store:
                if self._contents:
                    which: dict[str, Any] = {"picture": (self._file_name, self._contents)}
                else:
                    is_hash = DIGEST.fullmatch(self._what.lower()) is not None
                    which = {"sha256" if is_hash else "caption": self._what}
                found = affected(store, self._roots, **which)
                return Pages(store, Urls(), self._roots).affected(found)
        except LineageError as error:
            return error_page(str(error), Urls())


class _Whence(_Dropped):
    """The page that says where a picture comes from."""

    _title, _question = "Whence", "Where does a picture come from?"
    _label = "Drop a picture that was drawn here"

    def _more(self) -> None:
        self._again = ui.button("Draw it again", color=None, on_click=self._redraw)
        self._again.props("flat no-caps").set_visibility(False)

    async def _told(self) -> None:
        await self._show(verify=False)

    async def _redraw(self) -> None:
        self._again.disable()
        self._again.set_text("Drawing it again ...")
        await self._show(verify=True)

    async def _show(self, verify: bool) -> None:
        shown, found = await asyncio.to_thread(self._asked, verify)
        self._answer.set_content(shown)
        self._again.set_visibility(found and not verify)
        self._again.set_text("Draw it again")
        self._again.enable()

    def _asked(self, verify: bool) -> tuple[str, bool]:
        try:
            with self._location.open() as store:
                found = whence.whence(store, self._file_name, self._contents, self._roots)
                if verify:
                    found = self._with_drawn_again(found)
                return Pages(store, Urls(), self._roots).whence(found), True
        except LineageError as error:
            return error_page(str(error), Urls()), False

    def _with_drawn_again(self, found: whence.Whence) -> whence.Whence:
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(self._contents)
            file.flush()
            return found.with_check(whence.drawn_again(found, file.name))


def _frame(request: Request) -> None:
    chosen = request.cookies.get(_THEME_COOKIE)
    dark = ui.dark_mode({"dark": True, "light": False}.get(chosen or ""))
    ui.add_head_html(f"<script>\n{live_script()}</script>")
    ui.query("body").classes("lineage-body")
    ui.query(".nicegui-content").classes("p-0")
    ui.html('<a class="skip" href="#top">To the content</a>', sanitize=False)
    with ui.element("header").classes("lineage-header"):
        here = ' aria-current="page"'
        links = "".join(
            f'<a href="{address}"{here if request.url.path == address else ""}>{name}</a>'
            for name, address in _NAVIGATION
        )
        ui.html(links, sanitize=False, tag="nav").props('aria-label="Pages"')

        def turn(value: bool) -> None:
            dark.set_value(value)
            word = "dark" if value else "light"
            ui.run_javascript(
                f"document.cookie = '{_THEME_COOKIE}={word}; path=/; SameSite=Strict; "
                "max-age=31536000'"
            )

        with ui.row().classes("themes").props('role="group" aria-label="Colours"'):
            ui.button("Light", color=None, on_click=lambda: turn(False)).props("flat dense no-caps")
            ui.button("Dark", color=None, on_click=lambda: turn(True)).props("flat dense no-caps")


def _runs_view(request: Request) -> RunsView:
    query = request.query_params
    page = query.get("page", "1")
    return RunsView(
        match=query.get("match", ""),
        status=query.get("status", ""),
        pipeline=query.get("pipeline", ""),
        sort=query.get("sort") or "-started",
        page=int(page) if page.isascii() and page.isdecimal() and len(page) < 9 else 1,
    )


def _number(text: str, kind: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise LineageError(f"there is no {kind} {text!r}: they have numbers")
    return int(text)


def _file(location: Location, roots: Sequence[str], artifact_id: str, name: str) -> Response:
    try:
        with location.open() as store:
            artifact = store.artifact(_number(artifact_id, "artifact"))
        file = files.find_file(artifact, name, roots)
    except LineageError as error:
        return PlainTextResponse(html.escape(str(error)), 404, headers=_FILE_HEADERS)
    kind = mimetypes.guess_type(file.path.name)[0] or "application/octet-stream"
    if file.path.suffix.lower() in _TEXT_SUFFIXES:
        kind = "text/plain"
    shown = kind.startswith(_SHOWN_KINDS)
    return FileResponse(
        file.path,
        media_type=kind,
        headers=_FILE_HEADERS,
        filename=None if shown else file.path.name,
    )
