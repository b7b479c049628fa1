"""A local web page for the pushed models: `make playground`, or `python -m serving.playground`.

It draws one picture at a time, in the order of the requests. Everything that the page needs comes
from this machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from nicegui import Client, ui

from serving import marking, seals, which_models
from serving.client import Generator, is_server
from serving.errors import ServingError, check_place
from serving.picture_field import SOFT, Painted, PictureField
from serving.pictures import Original
from serving.releases import IMAGE_ENCODER, current_version, is_model
from serving.request import (
    DEFAULT_SAMPLER,
    MAX_SIDE,
    MAX_STEPS,
    SAMPLERS,
    check_prompts,
    check_request,
    cut_note,
)
from storage import local_pages
from storage.flags import Command, report
from storage.model_manifest import ModelManifest
from storage.picture_marks import Marks
from storage.verdict import UNSURE, VERDICT

PORT = 8080
MAX_PICTURES = 16
MAX_WAITING = 8
MAX_GALLERY = 64
TITLE = "Playground"

_METRICS = {"loss": "Held-out loss (lower is better)", "loss_baseline": "Baseline's loss"}
# Text on black needs a lighter colour than a button with white text.
_STYLE = """
@media screen {
  .body--dark { --q-primary: #a5b4fc !important; }
  .body--dark .bg-primary { --q-primary: #3b5bdb !important; }
}
@media print {
  .body--dark, .body--dark * { color: #121212 !important; background: none !important; }
}
.nicegui-link { color: var(--q-primary); }
.q-uploader__header { color: inherit; background: none; }
"""
# Random seeds, which the page draws itself, stay within what a browser represents exactly.
_MAX_RANDOM_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Request:
    """The request for one picture.

    Attributes:
        prompt: What to draw.
        negative_prompt: What to avoid.
        num_steps: Sampling steps.
        guidance_scale: How strictly to follow the prompt.
        sampler: One of `SAMPLERS`.
        seed: Decides the noise.
        height: In pixels; `None` for the height of the training pictures.
        width: Like `height`.
        painted: The picture and mask on the page to draw from, if any.
        original: The same, in the form that the models take.
    """

    prompt: str
    negative_prompt: str
    num_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    height: int | None = None
    width: int | None = None
    painted: Painted | None = None
    original: Original | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture, and the request and release that it was drawn with."""

    request: Request
    version: int
    contents: bytes
    height: int
    width: int
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The picture as an address that a browser can show."""
        return f"data:image/png;base64,{base64.b64encode(self.contents).decode()}"


class Studio:
    """The models, shared by all open pages."""

    def __init__(
        self,
        address: str,
        version: int | None,
        memory_limit_bytes: int | None = None,
        marked: marking.Marking | None = None,
        verification: seals.Verification | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            address: A serving directory or a server; see `serving.client.Generator`.
            version: The release; if None, the current one, even after that changes.
            memory_limit_bytes: See `serving.client.Generator`.
            marked: How to mark pictures; if None, with everything.
            verification: See `serving.client.Generator`.
        """
        self.address = address
        self._marking = marked or marking.Marking()
        self._version = version
        self._memory_limit_bytes = memory_limit_bytes
        self._verification = verification
        self._generator: Generator | None = None
        self._loading = asyncio.Lock()
        self._drawing = asyncio.Lock()
        self._waiting = 0

    async def generator(self) -> Generator:
        """The models, loaded if they are not yet, or no longer the current ones."""
        async with self._loading:
            if self._generator is None or await asyncio.to_thread(
                self._is_outdated, self._generator
            ):
                self._generator = await asyncio.to_thread(
                    Generator,
                    self.address,
                    self._version,
                    memory_limit_bytes=self._memory_limit_bytes,
                    verification=self._verification,
                )
            return self._generator

    async def draw(self, request: Request) -> Drawn:
        """Draws one picture, once all earlier requests are done.

        Raises:
            ServingError: Too many requests are waiting, or the picture cannot be drawn.
        """
        async with self._turn():
            generator = await self.generator()
            notes: list[str] = []
            marks: list[Marks] = []
            original = request.original
            pictures = await asyncio.to_thread(
                generator.generate,
                [request.prompt],
                request.negative_prompt,
                num_steps=request.num_steps,
                guidance_scale=request.guidance_scale,
                sampler=request.sampler,
                seed=request.seed,
                height=request.height,
                width=request.width,
                image=original.pixels if original else None,
                strength=original.strength if original else None,
                mask=original.mask if original else None,
                on_marks=marks.append,
                on_cut=lambda prompt, cut: notes.append(cut_note(prompt, cut)),
            )
            [picture] = pictures
            contents = await asyncio.to_thread(self._marking.encode, picture, marks)
            height, width, _ = picture.shape
            return Drawn(request, generator.version, contents, height, width, tuple(notes))

    def _is_outdated(self, generator: Generator) -> bool:
        if self._version is not None or generator.release is None or is_model(self.address):
            return False
        return generator.release.version != current_version(self.address)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise ServingError(
                f"{self._waiting} pictures are already waiting; try again when some are done"
            )
        self._waiting += 1
        try:
            async with self._drawing:
                yield
        finally:
            self._waiting -= 1


class Page:
    """The page in one browser tab."""

    def __init__(self, client: Client, studio: Studio, lineage_url: str) -> None:
        """Builds the page; `load` fills it."""
        self._client = client
        self._studio = studio
        self._lineage_url = lineage_url.rstrip("/")
        self._stopped = False
        ui.page_title(TITLE)
        ui.colors(primary="#3b5bdb")
        ui.dark_mode(None)
        ui.add_css(_STYLE)
        with ui.row().classes("w-full no-wrap items-start gap-6 max-md:flex-wrap"):
            with ui.column().classes("w-80 shrink-0 gap-3"):
                self._controls()
            with ui.column().classes("grow gap-3"):
                self._progress = ui.linear_progress(0, show_value=False)
                self._progress.props('instant-feedback aria-label="Progress"')
                self._status = ui.label("Loading the models ...").classes(SOFT)
                self._status.mark("status").props("aria-live=polite")
                self._gallery = ui.row().classes("gap-4").mark("gallery")

    def _controls(self) -> None:
        _heading(TITLE, 1).classes("text-2xl font-medium")
        self._prompt = ui.textarea("Prompt").props("outlined autogrow").classes("w-full")
        self._prompt.on("keydown.ctrl.enter", self._draw)
        self._negative = ui.input("Negative prompt").props("outlined dense").classes("w-full")
        with ui.row().classes("w-full no-wrap"):
            self._steps = _number("Steps", 1, MAX_STEPS)
            self._guidance = _number("Guidance scale", 0, None, step=0.5, precision=2)
            self._steps.tooltip("More take longer, and draw finer up to a point")
            self._guidance.tooltip("The higher, the more strictly the prompt is followed")
        with ui.row().classes("w-full no-wrap"):
            self._height = _number("Height", 1, MAX_SIDE)
            self._width = _number("Width", 1, MAX_SIDE)
            for side in (self._height, self._width):
                side.tooltip("Pixels; empty means the size that the release was trained at")
        self._picture = PictureField()
        self._sampler = ui.select(list(SAMPLERS), label="Sampler", value=DEFAULT_SAMPLER)
        self._sampler.props("outlined dense").classes("w-full")
        with ui.row().classes("w-full no-wrap items-center"):
            # As text: a browser's numbers are only exact up to 2^53.
            self._seed = ui.input("Seed", value="0").props("outlined dense").classes("grow")
            ui.button(icon="casino", on_click=self._random_seed).props(
                'flat round aria-label="Random seed"'
            ).tooltip("Random seed")
            self._count = _number("Pictures", 1, MAX_PICTURES, value=1)
        with ui.row().classes("w-full no-wrap"):
            self._button = ui.button("Draw", on_click=self._draw).classes("grow")
            self._button.disable()
            self._stop = ui.button("Stop", on_click=self._end).props("outline")
            self._stop.disable()
        self._facts = ui.card().classes("w-full gap-1").mark("release")

    async def load(self) -> None:
        """Loads the models, and shows which they are."""
        try:
            generator = await self._studio.generator()
        except ServingError as error:
            if not self._client.is_deleted:
                self._status.set_text(f"The models cannot be used: {error}")
            return
        if self._client.is_deleted:
            return
        self._steps.value = generator.num_steps
        self._guidance.value = generator.guidance_scale
        self._sampler.value = generator.sampler
        if generator.release is not None:
            self._picture.offer(IMAGE_ENCODER in generator.release.networks)
            self._height.value = self._width.value = generator.release.image_size
        self._button.enable()
        self._status.set_text("Ready.")
        try:
            # For a server, this makes a call.
            version = await asyncio.to_thread(lambda: generator.version)
        except ServingError as error:
            if not self._client.is_deleted:
                self._status.set_text(str(error))
            return
        if not self._client.is_deleted:
            self._show_release(generator, version)

    def _show_release(self, generator: Generator, version: int) -> None:
        self._facts.clear()
        release = generator.release
        facts = dict(release.facts) if release else {}
        with self._facts:
            _heading(f"Release {version}", 2).classes("text-lg font-medium")
            for name, value in _shown_facts(self._studio.address, facts):
                with ui.row().classes("w-full justify-between text-sm no-wrap"):
                    ui.label(name).classes(SOFT)
                    ui.label(value).classes("text-right break-all")
            if release is not None and self._lineage_url:
                address = f"{self._lineage_url}/release/{version}"
                ui.link("Lineage", address, new_tab=True)

    def _random_seed(self) -> None:
        self._seed.value = str(secrets.randbelow(_MAX_RANDOM_SEED + 1))

    def _end(self) -> None:
        self._stopped = True
        self._status.set_text("Stopping after this picture ...")

    def _requests(self) -> list[Request]:
        try:
            first = int(self._seed.value)
        except ValueError:
            raise ServingError(f"the seed is {self._seed.value!r}; it must be a number") from None
        for name, field in (
            *(("number of steps", self._steps), ("guidance scale", self._guidance)),
            ("number of pictures", self._count),
        ):
            if field.value is None:
                raise ServingError(f"the {name} is missing")
        count = int(self._count.value)
        if not 1 <= count <= MAX_PICTURES:
            raise ServingError(f"the number of pictures is {count}; it must be 1 to {MAX_PICTURES}")
        steps, scale = int(self._steps.value), float(self._guidance.value)
        seeds = [first + index for index in range(count)]
        height, width = (
            None if field.value is None else int(field.value)
            for field in (self._height, self._width)
        )
        painted, strength = self._picture.painted, self._picture.strength
        check_request(
            num_steps=steps,
            guidance_scale=scale,
            seeds=seeds,
            height=height,
            width=width,
            strength=strength,
        )
        prompt, negative = self._prompt.value or "", self._negative.value or ""
        check_prompts([prompt])
        request = Request(
            prompt,
            negative,
            steps,
            scale,
            self._sampler.value,
            first,
            height,
            width,
            painted,
            painted.original(strength) if painted else None,
        )
        return [dataclasses.replace(request, seed=seed) for seed in seeds]

    async def _draw(self) -> None:
        if not self._button.enabled:
            return
        try:
            requests = self._requests()
        except ServingError as error:
            ui.notify(str(error), type="negative")
            return
        self._stopped = False
        self._button.disable()
        self._stop.enable()
        try:
            for done, request in enumerate(requests):
                if self._stopped:
                    break
                self._progress.value = done / len(requests)
                self._status.set_text(f"Drawing picture {done + 1} of {len(requests)} ...")
                drawn = await self._studio.draw(request)
                # Another release may have become the current one.
                generator = await self._studio.generator()
                if self._client.is_deleted:
                    return
                self._show(drawn)
                self._progress.value = (done + 1) / len(requests)
                self._show_release(generator, drawn.version)
            self._status.set_text("Stopped." if self._stopped else "Done.")
        except ServingError as error:
            if self._client.is_deleted:
                return
            self._status.set_text(f"Drawing failed: {error}")
            ui.notify(str(error), type="negative", multi_line=True)
        finally:
            if not self._client.is_deleted:
                self._button.enable()
                self._stop.disable()

    def _show(self, drawn: Drawn) -> None:
        request = drawn.request
        with self._gallery, ui.card().classes("w-64 gap-1") as card:
            picture = ui.image(drawn.source).classes("w-full").style("image-rendering: auto")
            picture.props["alt"] = request.prompt
            ui.label(request.prompt).classes("text-sm")
            for note in drawn.notes:
                ui.label(note).classes("text-xs text-orange-800 dark:text-orange-300")
            if request.negative_prompt:
                ui.label(f"without: {request.negative_prompt}").classes(f"text-xs {SOFT}")
            ui.label(
                f"seed {request.seed}, {request.num_steps} steps of {request.sampler}, guidance "
                f"{request.guidance_scale:g}, {drawn.width} x {drawn.height} pixels, release "
                f"{drawn.version}"
            ).classes(f"text-xs {SOFT}")
            if (original := request.original) is not None:
                part = "" if original.mask is None else f"{original.mask.mean():.0%} of "
                ui.label(f"from {part}a picture, strength {original.strength:g}").classes(
                    f"text-xs {SOFT}"
                )
            with ui.row().classes("gap-1"):
                ui.button(
                    icon="download",
                    on_click=lambda: ui.download(drawn.contents, f"{request.seed}.png"),
                ).props('flat dense size=sm aria-label="Download"').tooltip("Download")
                ui.button(icon="replay", on_click=lambda: self._take_over(request)).props(
                    'flat dense size=sm aria-label="Use these settings"'
                ).tooltip("Use these settings")
                ui.button(icon="close", on_click=card.delete).props(
                    'flat dense size=sm aria-label="Remove"'
                ).tooltip("Remove")
        card.move(target_index=0)
        cards = list(self._gallery)
        if len(cards) > MAX_GALLERY:
            cards[-1].delete()

    def _take_over(self, request: Request) -> None:
        self._prompt.value = request.prompt
        self._negative.value = request.negative_prompt
        self._steps.value = request.num_steps
        self._guidance.value = request.guidance_scale
        self._sampler.value = request.sampler
        self._seed.value = str(request.seed)
        self._height.value, self._width.value = request.height, request.width
        self._picture.show(request.painted, request.original.strength if request.original else None)
        self._count.value = 1


def _heading(text: str, level: int) -> ui.label:
    return ui.label(text).props(f"role=heading aria-level={level}")


def _number(label: str, low: float, high: float | None, **settings: Any) -> ui.number:
    settings = {"precision": 0, **settings}
    return ui.number(label, min=low, max=high, **settings).props("outlined dense").classes("w-full")


def _shown_facts(address: str, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield ("Server" if is_server(address) else "Directory"), address
    if "preset" in facts:
        yield "Preset", str(facts["preset"])
    if "image_size" in facts:
        yield "Pixels", f"{facts['image_size']} x {facts['image_size']}"
    if "pushed_at" in facts:
        yield "Pushed", str(facts["pushed_at"]).replace("T", " ").partition("+")[0]
    if facts.get(VERDICT) == UNSURE:
        yield "Unsure", "; ".join(facts.get("reasons", []))
    for name, label in _METRICS.items():
        if name in facts.get("metrics", {}):
            yield label, f"{facts['metrics'][name]:.4f}"
    if manifest := ModelManifest.of_release(facts):
        if "steps" in manifest.training:
            yield "Training steps", str(manifest.training["steps"])
        if manifest.git_commit:
            yield "Code", manifest.git_commit[:10]


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.playground",
        "A local web page that draws pictures with the pushed models.",
        [
            ((), "the models of the default run"),
            (("--server", "http://127.0.0.1:8501"), "the models of a TensorFlow Serving"),
        ],
        takes_version=True,
    )
    which_models.add_arguments(parser)
    marking.add_arguments(parser)
    parser.add_argument(
        "--host",
        default=local_pages.HOST,
        help="the address to listen at; anyone who can reach it can draw (default: %(default)s, "
        "only this machine)",
    )
    parser.add_argument(
        "--trusted-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name that browsers may use for this page, such as a proxy's "
        "(repeatable)",
    )
    parser.add_argument(
        "--port", type=local_pages.port_number, default=PORT, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--lineage-url",
        default="http://127.0.0.1:8081",
        metavar="URL",
        help='the address of the lineage pages, "" for no link (default: %(default)s)',
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the page until it is interrupted; returns the exit code, 2 for a mistake."""
    arguments = command().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        release = which_models.check(arguments)
        marked, verification = marking.of(arguments, release), seals.of(arguments)
        check_place(arguments.lineage_url)
        listener = local_pages.listen(arguments.host, arguments.port, "playground")
    except (ServingError, local_pages.AddressError, OSError) as error:
        return report(error)
    studio = Studio(
        which_models.address(arguments),
        arguments.version,
        which_models.memory_limit_bytes(arguments),
        marked,
        verification,
    )

    @ui.page("/")
    async def index(client: Client) -> None:
        page = Page(client, studio, arguments.lineage_url)
        await client.connected()
        if not client.is_deleted:
            await page.load()

    print(f"{TITLE}: {local_pages.url(listener)} (Ctrl-C ends it)", flush=True)
    local_pages.serve(
        TITLE,
        listener,
        trusted_hosts=arguments.trusted_host,
        open_window=not arguments.no_browser,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
