"""The pages, served as a user serves them and looked at by a browser without a network."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import local_page
import numpy as np
import psutil
import pytest
from browser import PHONE, browser, findings
from made_store import COMPLETE, FIRST_DAY, HOSTILE, MINUTE, Settings, StoreMaker
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from PIL import Image
from small_marks import small_marks

from storage import picture_marks

REPO_ROOT = Path(__file__).resolve().parents[3]
SECRET = "what nobody may read"


@contextlib.contextmanager
def served(store: Path):
    """Serves a store; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.lineage", "--store", str(store)]
    # NiceGUI takes a process of pytest for a test of its own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    process = subprocess.Popen(
        [*command, "serve", "--port", str(port)], cwd=REPO_ROOT, env=environment
    )
    address = f"http://localhost:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=60).close()
                break
            except urllib.error.URLError:
                assert process.poll() is None
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An output folder: runs, a report with files, and artifacts that point elsewhere."""
    folder = tmp_path_factory.mktemp("output")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text(SECRET)
    report = folder / "artifacts" / "report"
    report.mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(report / "loss curve #1.png")
    (report / "page.html").write_text("<h1>page</h1><script>parent.document.title='owned'</script>")
    (report / "link.txt").symlink_to(outside / "secret.txt")
    (report / "door").symlink_to(outside)
    (folder / "artifacts" / "way out").symlink_to(outside)
    maker = StoreMaker(folder=str(folder / "artifacts"))
    made = maker.run("first")
    other = Settings(learning_rate=1e-4)
    maker.run("second", other, FIRST_DAY + MINUTE, baseline=made["model"], loss=0.1)
    for uri in (report, outside, folder / "artifacts" / "way out", "/", f"{report}/../../../.."):
        artifact = maker.artifact("components.EvaluationReport", str(uri))
        maker.execution("reports", "EvaluationReport", COMPLETE, outputs={"report": [artifact]})
    maker.save(folder / "metadata.sqlite")
    return folder, len(maker.artifacts) - 4


@pytest.fixture(scope="module")
def address(folder):
    with served(folder[0]) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


@pytest.fixture(params=["light", "dark"])
def tab(request, chromium):
    """A tab that fails its test on any request to elsewhere and any error on a page."""
    context = chromium.new_context(color_scheme=request.param)
    tab = context.new_page()
    tab.set_default_timeout(20000)
    problems = []
    local = re.compile(r"(https?|ws)://localhost:\d+/|data:|blob:|about:")
    tab.on("request", lambda r: local.match(r.url) or problems.append(r.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    blocked = "Blocked script execution"  # in a file: as it should be
    tab.on(
        "console",
        # A page that is not there says so with its status, which the console repeats.
        lambda m: (
            m.type == "error"
            and blocked not in m.text
            and m.location["url"] != tab.url
            and problems.append(m.text)
        ),
    )
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    yield tab
    context.close()
    assert problems == []


def go(tab, url):
    status = tab.goto(url).status
    tab.wait_for_selector(".lineage-page h1")
    return status


# The least contrast of all texts, by WCAG 2's formula.
_CONTRAST = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const e of document.querySelectorAll(':is(.lineage-page, .lineage-header) *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    let [ink, ground] = [rgb(getComputedStyle(e).color), paper(e)];
    if (e.namespaceURI.endsWith('svg')) {
      if (e.tagName !== 'text') continue;
      ink = rgb(getComputedStyle(e).fill);
      const box = e.parentElement.querySelector('rect');
      if (box) ground = rgb(getComputedStyle(box).fill);
    }
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""


def test_every_page_by_its_address(tab, address):
    for path, heading in {
        "/": "Runs",
        "/run/first": "Run first",
        "/run/latest": "Run second",
        "/step/6": "Trainer",
        "/artifact/1": "Examples, artifact 1",
        "/trace/1": "What made Examples 1",
        "/release/1": "Release 1",
        "/release/latest": "Release 2",
        "/impact?what=data/creatures": "What did it touch?",
        "/diff?first=first&second=second": "Differences between two runs",
        "/compare?setting=learning_rate": "Metrics over runs",
        "/whence": "Where does a picture come from?",
        "/affected": "Where was this picture used?",
        "/run/none": "No answer",
        "/artifact/x": "No answer",
        "/release/9": "No answer",
    }.items():
        assert go(tab, address + path) == (404 if heading == "No answer" else 200), path
        assert tab.locator("h1").inner_text() == heading, path
        assert tab.evaluate(_CONTRAST) >= 4.5, path
        assert tab.locator("html").get_attribute("lang") == "en-US"
        assert findings(tab) == []


def test_pages_fit_a_phone(tab, address):
    tab.set_viewport_size({"width": PHONE, "height": 800})
    for path in ("/", "/run/first", "/release/2", "/history", "/impact", "/compare", "/affected"):
        go(tab, address + path)
        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE, path
        assert findings(tab) == []


def test_dark_pages_are_printed_in_light_colours(tab, address):
    go(tab, address + "/run/first")
    tab.emulate_media(media="print")
    for part in ("h1", "dd", ".node text"):
        ink = tab.locator(f".lineage-page {part}").first.evaluate(
            "e => getComputedStyle(e)[e.tagName === 'text' ? 'fill' : 'color']"
        )
        assert ink == "rgb(28, 36, 48)"


def test_a_picture_is_dropped(tab, address, tmp_path):
    made = small_marks(prompt="a <b>cat</b>")
    (tmp_path / "x.png").write_bytes(picture_marks.encode(np.zeros((8, 8, 3), np.uint8), [made]))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    go(tab, address + "/whence")
    tab.set_input_files("input[type=file]", tmp_path / "x.png")
    tab.wait_for_selector("h2:has-text('x.png')")
    assert tab.locator(".lineage-page ul").first.inner_text().startswith("'a <b>cat</b>'")
    assert tab.locator("a:has-text('release 1')").get_attribute("href") == "/release/1"
    assert tab.evaluate(_CONTRAST) >= 4.5
    # There is no model to draw with.
    tab.click("text=Draw it again")
    tab.wait_for_selector("td:has-text('not compared')", timeout=60_000)
    tab.set_input_files("input[type=file]", tmp_path / "plain.png")
    tab.wait_for_selector("text=plain.png carries no marks of this project")


def test_a_picture_is_asked_for(tab, address, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    go(tab, address + "/affected")
    tab.set_input_files("input[type=file]", tmp_path / "red.png")
    tab.wait_for_selector("text=still available has the picture red.png (SHA-256")
    tab.get_by_label("or a caption").fill("a <b>cat</b>")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("text=still available has the caption 'a <b>cat</b>', or nearly the same")
    assert tab.get_by_label("or a caption").input_value() == "a <b>cat</b>"


def test_filter_and_sort_with_the_keyboard(tab, address):
    go(tab, f"{address}/")
    rows = tab.locator("tbody tr")
    assert rows.count() == 3
    tab.get_by_label("Name contains").press_sequentially("sec")
    tab.keyboard.press("Enter")
    tab.wait_for_url(re.compile(r"match=sec"))
    assert rows.count() == 1
    assert "second" in rows.inner_text()
    go(tab, f"{address}/")
    tab.get_by_role("link", name="loss", exact=True).press("Enter")
    tab.wait_for_url(re.compile(r"sort=loss$"))
    assert [rows.nth(i).locator("td.name").inner_text() for i in range(3)] == [
        "second",
        "first",
        "reports",
    ]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    tab.get_by_role("link", name="loss ▲").press("Enter")
    tab.wait_for_url(re.compile(r"sort=-loss"))
    assert rows.first.locator("td.name").inner_text() == "first"


def test_what_a_run_came_to_is_on_the_screen(tab, address):
    tab.set_viewport_size({"width": 1280, "height": 800})
    go(tab, f"{address}/")
    for name in ("release", "blessed", "loss", "change", "run", "status"):
        box = (
            tab.get_by_role("columnheader")
            .get_by_role("link", name=name, exact=True)
            .bounding_box()
        )
        assert box["x"] + box["width"] < 1280, name
    assert "-20.0 %" in tab.locator("tbody tr", has_text="first").inner_text()


def test_two_runs_are_chosen_with_the_keyboard(tab, address):
    go(tab, f"{address}/?sort=started")
    tab.get_by_label("compare run first as A").press("Space")
    tab.get_by_label("compare run second as B").press("Space")
    tab.get_by_role("button", name="Differences between A and B").press("Enter")
    tab.wait_for_url(re.compile(r"/diff\?first=\d+&second=\d+"))
    assert tab.get_by_role("row", name="LossScorer scores.loss 0.16 0.1").count() == 1


def test_the_graph_is_for_the_keyboard_too(tab, address):
    go(tab, f"{address}/run/first")
    box = tab.get_by_role("link", name="step Trainer: complete, 2 min 00 s")
    assert box.evaluate("e => getComputedStyle(e.querySelector('rect')).fill") != (
        tab.locator("svg a.artifact rect").first.evaluate("e => getComputedStyle(e).fill")
    )
    box.focus()
    assert box.evaluate("e => getComputedStyle(e.querySelector('rect')).strokeWidth") == "3px"
    tab.keyboard.press("Enter")
    tab.wait_for_url(re.compile(r"/step/6$"))
    tab.get_by_role("link", name="Model ", exact=False).first.click()
    tab.wait_for_url(re.compile(r"/artifact/\d+$"))


def test_skip_link_comes_first(tab, address):
    go(tab, f"{address}/")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "To the content"


def test_colours_are_kept(tab, address):
    go(tab, f"{address}/")
    for name, dark in (("Dark", True), ("Light", False)):
        tab.get_by_role("button", name=name).click()
        tab.wait_for_function(
            "dark => document.body.classList.contains('body--dark') === dark", arg=dark
        )
        tab.wait_for_function("name => document.cookie.includes(name)", arg=name.lower())
        go(tab, f"{address}/run/first")
        assert tab.evaluate("document.body.classList.contains('body--dark')") is dark
        assert tab.evaluate(_CONTRAST) >= 4.5


def test_files_of_an_artifact(tab, address, folder):
    _, report = folder
    go(tab, f"{address}/artifact/{report}")
    picture = tab.get_by_role("img", name="loss curve #1.png")
    assert picture.evaluate("e => e.decode().then(() => e.naturalWidth)") == 40
    listed = tab.locator("td a[href*='/files/']").all_inner_texts()
    assert listed == ["page.html"]
    tab.goto(f"{address}/files/{report}/page.html")
    assert tab.locator("h1").inner_text() == "page"
    assert tab.title() != "owned"


def fetch(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_files_cannot_leave_the_pipelines_folders(address, folder):
    _, report = folder
    status, headers, content = fetch(f"{address}/files/{report}/page.html")
    assert status == 200
    assert content.startswith(b"<h1>")
    assert "sandbox" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for name in (
        "link.txt",
        "door/secret.txt",
        "../../metadata.sqlite",
        "..%2f..%2fmetadata.sqlite",
        "%2e%2e/%2e%2e/metadata.sqlite",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "page.html%00.png",
        "door",
        "",
        "a" * 5000,
    ):
        status, _, content = fetch(f"{address}/files/{report}/{name}")
        assert status in (404, 400), name
        assert SECRET.encode() not in content
    for artifact in range(report + 1, report + 5):
        for name in ("secret.txt", "etc/passwd", "passwd", "metadata.sqlite"):
            assert fetch(f"{address}/files/{artifact}/{name}")[0] == 404
        assert b"are outside the pipeline" in fetch(f"{address}/artifact/{artifact}")[2]
    assert fetch(f"{address}/files/99999/x")[0] == 404
    assert fetch(f"{address}/files/x/x")[0] == 404


def test_other_sites_do_not_get_in(address):
    local_page.check_nobody_else_gets_in(address)
    port = urllib.parse.urlsplit(address).port
    # Not by the machine's name, which need not lead anywhere.
    others = {
        each.address
        for interface in psutil.net_if_addrs().values()
        for each in interface
        if each.family == socket.AF_INET and each.address != "127.0.0.1"
    }
    for other in others:
        with socket.socket() as client:
            client.settimeout(2)
            assert client.connect_ex((other, port)) != 0


def test_an_unknown_address_and_a_port_that_is_taken(address, folder):
    local_page.check_unknown_address(address, "Lineage")
    command = ["-m", "pipeline.lineage", "--store", str(folder[0]), "serve"]
    local_page.check_port_is_taken(address, command, "lineage", str(REPO_ROOT))


def test_no_frame_shows_the_pages(chromium, address):
    local_page.check_frame(chromium.new_page(), address)


def test_hostile_text(chromium, hostile):
    with served(hostile) as address:
        tab = chromium.new_context().new_page()
        tab.set_default_timeout(20000)
        dialogs = []
        tab.on("dialog", lambda dialog: dialogs.append(dialog.message))
        paths = ["/", "/compare", "/impact", "/artifact/1", "/trace/1", "/step/1"]
        paths += [
            f"/run/{urllib.parse.quote(text, safe='')}" for text in HOSTILE if "\n" not in text
        ]
        paths += [f"/release/{urllib.parse.quote(HOSTILE[1], safe='')}"]
        query = urllib.parse.urlencode
        paths += [f"/diff?{query({'first': a, 'second': HOSTILE[0]})}" for a in HOSTILE]
        paths += [f"/impact?{query({'what': text})}" for text in (*HOSTILE, "<b id=x>")]
        paths += [f"/?{query({'match': text, 'sort': text})}" for text in HOSTILE]
        paths += [f"/compare?{query({'setting': HOSTILE[0]})}"]
        for path in paths:
            go(tab, address + path)
            assert tab.title().endswith("- lineage"), path
            strange = ".lineage-page :is(script, img, iframe, b, [onerror], [onload])"
            assert tab.locator(strange).count() == 0, path
            addresses = tab.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
            assert all(a.startswith(("/", "#")) for a in addresses), path
        assert dialogs == []
        # What is shown is the text itself.
        go(tab, f"{address}/?sort=run")
        assert tab.get_by_role("link", name=HOSTILE[0], exact=True).count() == 1


def test_live(chromium, tmp_path):
    """A page follows a run that goes on, and the keyboard stays where it is."""
    maker = StoreMaker()
    maker.run("first")
    maker.save(tmp_path / "metadata.sqlite")
    with served(tmp_path) as address:
        tab = chromium.new_context().new_page()
        tab.set_default_timeout(20000)
        go(tab, f"{address}/")
        tab.get_by_label("Name contains").fill("half a na")
        tab.get_by_label("compare run first as A").check()
        tab.get_by_role("link", name="first", exact=True).focus()
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(tmp_path / "metadata.sqlite")
        store = metadata_store.MetadataStore(config)
        kind = store.put_context_type(mlmd.ContextType(name="pipeline_run"))
        node = store.put_context_type(mlmd.ContextType(name="node"))
        step = mlmd.Execution(
            type_id=store.put_execution_type(mlmd.ExecutionType(name="some.Step")),
            last_known_state=mlmd.Execution.RUNNING,
        )
        step.id, _, _ = store.put_execution(
            step,
            [],
            [mlmd.Context(type_id=kind, name="new"), mlmd.Context(type_id=node, name="p.Step")],
        )
        row = tab.get_by_role("row", name=re.compile("new running"))
        row.wait_for()
        tab.wait_for_function("document.activeElement.textContent === 'first'")
        assert tab.get_by_label("Name contains").input_value() == "half a na"
        assert tab.get_by_label("compare run first as A").is_checked()
        step.last_known_state = mlmd.Execution.FAILED
        store.put_executions([step])
        tab.get_by_role("row", name=re.compile("new failed")).wait_for()


def test_a_page_recovers_from_a_lock(chromium, tmp_path):
    maker = StoreMaker()
    maker.run("first")
    path = tmp_path / "metadata.sqlite"
    maker.save(path)
    with served(tmp_path) as address:
        tab = chromium.new_context().new_page()
        tab.set_default_timeout(30000)
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        go(tab, f"{address}/")
        assert "is locked" in tab.get_by_role("alert").inner_text()
        assert fetch(address)[0] == 503
        lock.execute("ROLLBACK")
        tab.get_by_role("heading", name="Runs").wait_for()


def test_a_store_that_is_not_there(tmp_path):
    """What cannot be read says so before anything is served."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.lineage", "--store", str(tmp_path / "none"), "serve"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no metadata database")
