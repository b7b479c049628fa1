"""Pages in a real browser: Chromium without a network."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PHONE, WIDE = 390, 1400
SCHEMES = ("light", "dark")


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a browser made of a page.

    Attributes:
        overflow: Pixels that the page is wider than the window.
        requests: Addresses that were asked for, but for the page's own and data.
        errors: What the console complained about.
        broken: Pictures that were not shown.
        background: The page's colour.
        cut: Words in charts that reach beyond them, by more than a rounded glyph.
        nameless: Pictures that say nothing to those who do not see them.
        smallest_picture: Width in pixels, of those that can be seen; 0 if there is none.
    """

    overflow: int
    requests: list[str]
    errors: list[str]
    broken: int
    cut: list[str]
    nameless: int
    background: str
    smallest_picture: float


@contextlib.contextmanager
def browser() -> Iterator:
    """Starts Chromium; a test that finds none is skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def show(chromium, page: Path, width: int, scheme: str, screenshot: Path | None = None) -> Shown:
    """Opens a page offline in a window of some width, in the colour scheme `light` or `dark`."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        offline=True,
        is_mobile=width == PHONE,
        device_scale_factor=2 if width == PHONE else 1,
    )
    tab = context.new_page()
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.resolve().as_uri())
    found = tab.evaluate(
        """() => {
            const pictures = [...document.images];
            return {
                overflow: document.documentElement.scrollWidth - window.innerWidth,
                broken: pictures.filter(p => !p.complete || !p.naturalWidth).length,
                nameless: pictures.filter(p => !p.alt.trim()).length,
                cut: [...document.querySelectorAll("svg text")].filter(t => {
                    const box = t.getBBox(), view = t.ownerSVGElement.viewBox.baseVal;
                    return box.x < view.x - 0.5 || box.x + box.width > view.x + view.width + 0.5;
                }).map(t => t.textContent),
                background: getComputedStyle(document.body).backgroundColor,
                smallest_picture: Math.min(
                    ...pictures.map(p => p.getBoundingClientRect().width), 1e6) % 1e6,
            };
        }"""
    )
    if screenshot is not None:
        tab.screenshot(path=str(screenshot), full_page=True)
    context.close()
    own = page.resolve().as_uri()
    asked = [url for url in requests if url != own and not url.startswith("data:")]
    return Shown(requests=asked, errors=errors, **found)


def findings(tab) -> list[str]:
    """What axe-core, which knows the rules of screen readers, finds amiss on the page in a tab.

    What it takes for minor is left out.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [
        f"{found['id']} at {tab.url}: {node['html']}"
        for found in axe.run(tab).response["violations"]
        if found["impact"] != "minor"
        for node in found["nodes"]
    ]


def findings_of_file(chromium, page: Path) -> list[str]:
    """The same of a file, in windows of both widths and in both colour schemes."""
    found = []
    for width, scheme in itertools.product((PHONE, WIDE), SCHEMES):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        tab = context.new_page()
        tab.goto(page.resolve().as_uri())
        found += findings(tab)
        context.close()
    return found


def printed_ink(chromium, page: Path) -> str:
    """The colour of the text of a file that is printed from a browser in dark colours."""
    context = chromium.new_context(color_scheme="dark", offline=True)
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    ink = tab.evaluate("getComputedStyle(document.body).color")
    context.close()
    return ink
