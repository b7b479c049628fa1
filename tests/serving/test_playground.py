"""The page, driven in a browser."""

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import local_page
import numpy as np
import pytest
import small_releases
from browser import SCHEMES, browser, findings
from playwright.sync_api import Locator, Page, expect

from serving import playground, png
from serving.client import Generator
from serving.picture_field import Painted, Stroke
from serving.pictures import Original

ROOT = Path(__file__).resolve().parents[2]
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def root(publish: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("playground") / "serving_model"
    publish(root, 1)
    return root


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's process writes to the terminal."""
    return tmp_path_factory.mktemp("terminal") / "said"


@pytest.fixture(scope="module")
def url(root: Path, said: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "serving.playground", "--serving-dir", str(root)]
    command += ["--port", str(port), "--no-browser", "--lineage-url", "http://127.0.0.1:1/lineage"]
    # NiceGUI takes a process of pytest for a test of its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    with said.open("wb") as terminal:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=terminal, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=60).close()
            break
        except urllib.error.URLError:
            assert process.poll() is None
            time.sleep(0.2)
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@contextlib.contextmanager
def open_page(url: str, scheme: str = "light") -> Iterator[Page]:
    """The page in a browser of its own, which asks no other host and in which no script fails."""
    asked, failures = [], []
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url)
        yield page
    own = urlsplit(url).netloc
    assert [u for u in asked if urlsplit(u).netloc not in (own, "")] == []
    assert failures == []


def status(page: Page) -> Locator:
    return page.locator("[aria-live=polite]")


def pixels(picture: Locator) -> np.ndarray:
    source = picture.locator("img").first.get_attribute("src")
    assert source is not None
    return png.decode(base64.b64decode(source.removeprefix("data:image/png;base64,")))


def pictures(page: Page) -> Locator:
    return page.locator(".q-img")


def test_a_picture_is_dropped_drawn_from_and_painted_on(root: Path, url: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with open_page(url) as page:
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        upload = page.locator("input[type=file]")
        upload.set_input_files([{"name": "x.png", "mimeType": "image/png", "buffer": b"text"}])
        expect(page.get_by_text("x.png cannot be used: the picture cannot be")).to_be_visible()
        shown = page.get_by_role("img", name="Picture to draw from")
        expect(shown).to_be_hidden()
        file = {"name": "y.png", "mimeType": "image/png", "buffer": png.encode(image)}
        upload.set_input_files([file])
        expect(shown).to_be_visible()

        page.get_by_label("Prompt", exact=True).fill("a dragon")
        page.get_by_label("Steps", exact=True).fill("4")
        page.get_by_label("Strength").fill("0.5")
        draw = page.get_by_role("button", name="Draw", exact=True)
        draw.click()
        expect(status(page)).to_have_text("Done.")
        request = {"prompts": ["a dragon"], "num_steps": 4, "image": image}
        generator = Generator(str(root), 1)
        [expected] = generator.generate(**request, strength=0.5)
        np.testing.assert_array_equal(pixels(pictures(page).first), expected)
        expect(page.get_by_text("from a picture, strength 0.5", exact=True)).to_be_visible()

        # A stroke through the upper half, and nothing else changes.
        page.get_by_label("Strength").fill("")
        shown.scroll_into_view_if_needed()
        box = shown.locator("img").bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 4
        page.mouse.move(box["x"] + box["width"] / 4, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, y, steps=5)
        page.mouse.up()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 3 / 4)
        expect(shown.locator("polyline")).to_have_count(1)
        draw.click()
        expect(pictures(page)).to_have_count(2)
        painted = pixels(pictures(page).first)
        fitted = Original(image, 1.0).fitted(64, 64).pixels
        rows, columns = np.nonzero((painted != fitted).any(axis=-1))
        # The brush is 12 % of 128 pixels wide, and they are drawn half as large.
        assert (rows.min(), rows.max()) == (pytest.approx(12, abs=1), pytest.approx(20, abs=1))
        assert (columns.min(), columns.max()) == (
            pytest.approx(12, abs=2),
            pytest.approx(52, abs=2),
        )
        expect(
            page.get_by_text(re.compile("from [0-9]+% of a picture, strength 1"))
        ).to_be_visible()

        page.get_by_role("button", name="Clear the mask").click()
        expect(shown.locator("polyline")).to_have_count(0)
        page.get_by_role("button", name="Use these settings").first.click()
        expect(shown.locator("polyline")).to_have_count(1)
        draw.click()
        expect(pictures(page)).to_have_count(3)
        np.testing.assert_array_equal(pixels(pictures(page).first), painted)
        page.get_by_role("button", name="Remove the picture").click()
        expect(shown).to_be_hidden()
        draw.click()
        expect(pictures(page)).to_have_count(4)
        [from_text] = generator.generate(["a dragon"], num_steps=4)
        np.testing.assert_array_equal(pixels(pictures(page).first), from_text)


def test_a_mask_is_what_was_painted() -> None:
    image = np.zeros((6, 9, 3), np.uint8)
    assert Painted(image).mask() is None
    point = Painted(image, (Stroke(1.0, ((4.4, 2.6),)),)).mask()
    assert point is not None
    assert np.argwhere(point).tolist() == [[2, 4]]
    line = Painted(
        image, (Stroke(3.0, ((1.5, 1.5), (7.5, 1.5))), Stroke(1.0, ((8.9, 5.9),)))
    ).mask()
    assert line is not None
    assert line[:3, 1:8].all()
    assert not line[3:5].any()
    assert np.flatnonzero(line[5]).tolist() == [8]


def test_pictures_are_drawn_and_are_those_of_the_folder(
    root: Path, url: str, exported: dict[int, Path], tmp_path: Path
) -> None:
    with open_page(url) as page:
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        # What the release recommends, and what it is.
        expect(page.get_by_label("Steps", exact=True)).to_have_value("2")
        expect(page.get_by_label("Guidance scale")).to_have_value("3")
        expect(page.get_by_label("Height")).to_have_value("64")
        expect(page.get_by_label("Width")).to_have_value("64")
        for text in ("Release 1", "tiny", "64 x 64", "2026-11-25 12:00:00", "0.1602", "0.2037"):
            expect(page.get_by_text(text, exact=True)).to_be_visible()
        lineage = page.get_by_role("link", name="Lineage")
        expect(lineage).to_have_attribute("href", "http://127.0.0.1:1/lineage/release/1")

        page.get_by_label("Prompt", exact=True).fill("a blue dragon 🐉")
        page.get_by_label("Negative prompt").fill("a bird")
        page.get_by_label("Steps", exact=True).fill("3")
        page.get_by_label("Guidance scale").fill("4.5")
        page.get_by_label("Sampler").click()
        page.get_by_role("option", name="euler_a").click()
        page.get_by_label("Seed", exact=True).fill("9007199254740993")
        page.get_by_label("Pictures").fill("2")
        page.get_by_label("Height").fill("40")
        page.get_by_label("Width").fill("")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(status(page)).to_have_text("Done.")
        expect(pictures(page)).to_have_count(2)
        generator = Generator(str(root), 1)
        expected = generator.generate(
            ["a blue dragon 🐉"] * 2,
            "a bird",
            num_steps=3,
            guidance_scale=4.5,
            sampler="euler_a",
            seed=[2**53 + 1, 2**53 + 2],
            height=40,
        )
        assert expected.shape == (2, 40, 64, 3)
        # The newest is first.
        for place, picture in enumerate(reversed(expected)):
            np.testing.assert_array_equal(pixels(pictures(page).nth(place)), picture)
        expect(
            page.get_by_text(
                "seed 9007199254740994, 3 steps of euler_a, guidance 4.5, 64 x 40 pixels, release 1"
            )
        ).to_be_visible()

        # Settings of a picture, another release, a download, a removed picture.
        page.get_by_label("Seed", exact=True).fill("7")
        page.get_by_role("button", name="Use these settings").last.click()
        expect(page.get_by_label("Seed", exact=True)).to_have_value("9007199254740993")
        expect(page.get_by_label("Width")).to_have_value("")
        from_text = shutil.ignore_patterns("image_encoder")
        model = shutil.copytree(exported[2], tmp_path / "model", ignore=from_text)
        assert small_releases.publish(root, 2, model) == 2
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(pictures(page)).to_have_count(3)
        expect(page.get_by_text("Release 2", exact=True)).to_be_visible()
        [newer] = Generator(str(root), 2).generate(
            ["a blue dragon 🐉"],
            "a bird",
            num_steps=3,
            guidance_scale=4.5,
            sampler="euler_a",
            seed=2**53 + 1,
            height=40,
        )
        np.testing.assert_array_equal(pixels(pictures(page).first), newer)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").first.click()
        np.testing.assert_array_equal(png.decode(Path(download.value.path()).read_bytes()), newer)
        page.get_by_role("button", name="Remove", exact=True).first.click()
        expect(pictures(page)).to_have_count(2)
        # Release 2 has no image encoder.
        page.reload()
        expect(page.get_by_text("This release draws only from text.")).to_be_visible()
        expect(page.get_by_text("Drop a picture to draw from")).to_be_hidden()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_screen_reader_finds_nothing_amiss(root: Path, url: str, scheme: str) -> None:
    picture = png.encode(np.zeros((8, 8, 3), np.uint8))
    with open_page(url, scheme) as page:
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        page.locator("input[type=file]").set_input_files(
            [{"name": "y.png", "mimeType": "image/png", "buffer": picture}]
        )
        page.get_by_label("Prompt", exact=True).fill("a dragon")
        page.get_by_label("Steps", exact=True).fill("1")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(status(page)).to_have_text("Done.")
        # Buttons change their colours slowly.
        page.wait_for_timeout(1000)
        assert findings(page) == []


def test_wrong_values_are_told_and_draw_nothing(url: str) -> None:
    with open_page(url) as page:
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        draw = page.get_by_role("button", name="Draw", exact=True)
        draw.click()
        expect(page.get_by_text("there is no prompt; say what to draw")).to_be_visible()
        page.get_by_label("Prompt", exact=True).fill("a dragon")
        page.get_by_label("Seed", exact=True).fill("x")
        draw.click()
        expect(page.get_by_text("the seed is 'x'; it must be a number")).to_be_visible()
        page.get_by_label("Seed", exact=True).fill("-1")
        draw.click()
        expect(page.get_by_text("the seed is -1; it must be 0 to")).to_be_visible()
        page.get_by_label("Seed", exact=True).fill("0")
        page.get_by_label("Width").fill("44")
        draw.click()
        wrong = "Drawing failed: the width is 44; it must be a multiple of 8, for example 48"
        expect(status(page)).to_have_text(wrong)
        page.get_by_label("Steps", exact=True).fill("")
        draw.click()
        expect(page.get_by_text("the number of steps is missing")).to_be_visible()
        expect(pictures(page)).to_have_count(0)
        page.get_by_role("button", name="Random seed").click()
        expect(page.get_by_label("Seed", exact=True)).not_to_have_value("0")


def test_drawing_can_be_stopped(url: str) -> None:
    with open_page(url) as page:
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        page.get_by_label("Prompt", exact=True).fill("very " * 75 + "Large")
        page.get_by_label("Steps", exact=True).fill("200")
        page.get_by_label("Pictures").fill("16")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(status(page)).to_have_text("Drawing picture 1 of 16 ...")
        page.get_by_role("button", name="Stop").click()
        expect(status(page)).to_have_text("Stopped.")
        assert pictures(page).count() < 16
        # The end of the prompt was without effect.
        expect(page.get_by_text("cut off and has no effect: 'large'").first).to_be_visible()


def test_tabs_that_are_closed_at_any_moment_print_nothing(url: str, said: Path) -> None:
    with browser() as chromium:
        page = chromium.new_page()
        # Before its models are there, and while pictures are drawn.
        page.goto(url, wait_until="commit")
        page.close()
        page = chromium.new_page()
        page.goto(url)
        expect(status(page)).to_have_text("Ready.", timeout=120_000)
        page.get_by_label("Prompt", exact=True).fill("a dragon")
        page.get_by_label("Steps", exact=True).fill("1000")
        page.get_by_label("Pictures").fill("16")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(status(page)).to_have_text("Drawing picture 1 of 16 ...")
        page.close()
        # NiceGUI waits three seconds for a tab to come back.
        time.sleep(5)
    own = f"Playground: http://localhost:{urlsplit(url).port}/ (Ctrl-C ends it)\n"
    assert said.read_text() == own


def test_it_listens_on_this_machine_alone(url: str) -> None:
    arguments = playground.command().parse_args([])
    assert arguments.host == "127.0.0.1"
    local_page.check_nobody_else_gets_in(url)
    with browser() as chromium:
        local_page.check_frame(chromium.new_page(), url)


def test_an_unknown_address_and_a_port_that_is_taken(url: str, root: Path) -> None:
    local_page.check_unknown_address(url, "Playground")
    command = ["-m", "serving.playground", "--serving-dir", str(root), "--no-browser"]
    local_page.check_port_is_taken(url, command, "playground", str(ROOT))
    assert '<html lang="en-US">' in local_page.fetch(url, "/")[2]


def test_mistakes_are_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert playground.main(["--serving-dir", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no serving directory /nowhere; ")
    assert playground.main(["--server", "localhost"]) == 2
    assert "it must be http://HOST:PORT or grpc://HOST:PORT" in capsys.readouterr().err
