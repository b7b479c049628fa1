"""OpenLineage, Graphviz and pages in one file."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import urllib.parse
from xml.etree import ElementTree

import pytest
from browser import browser, findings_of_file
from made_store import COMPLETE, HOSTILE, StoreMaker
from openlineage.client import event_v2, facet_v2
from PIL import Image

from pipeline import lineage
from pipeline.lineage import drawing, exports, openlineage, pages


def export(path, what, form, roots=()):
    with lineage.locate(str(path)).open() as store:
        return exports.export(store, what, form, roots)


def test_openlineage_tells_the_run(small):
    path, made = small
    events = [json.loads(line) for line in export(path, "first", "openlineage").splitlines()]
    # Ten steps and the run itself; the resolver's two as well.
    assert len(events) == 2 * (10 + 1)
    assert {e["schemaURL"] for e in events} == {
        "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    }
    assert (events[0]["eventType"], events[0]["eventTime"]) == (
        "START",
        "2026-01-01T00:00:00.000+00:00",
    )
    assert events[-1]["eventType"] == "COMPLETE"
    assert events[-1]["run"]["runId"] == events[0]["run"]["runId"]
    trainer = [e for e in events if e["job"]["name"] == "sd-finetuning.Trainer"]
    start, end = trainer
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["run"]["facets"]["parent"]["run"]["runId"] == events[0]["run"]["runId"]
    parameters = start["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "custom_config.training.learning_rate", "value": "0.0003"} in parameters
    [latents] = start["inputs"]
    assert (latents["namespace"], latents["name"]) == ("file", "/pipeline/LatentGen/latents/5")
    assert {"key": "artifact", "value": str(made["first"]["latents"][0].id)} in (
        latents["facets"]["tags"]["tags"]
    )
    assert [d["name"] for d in end["outputs"]] == [
        "/pipeline/Trainer/model/6",
        "/pipeline/Trainer/model_run/6",
    ]


def test_openlineage_of_failed_cached_and_running(small):
    path, _ = small
    kinds = {}
    for run in ("failed", "again", "running"):
        events = [json.loads(line) for line in export(path, run, "openlineage").splitlines()]
        kinds[run] = [(e["job"]["name"].rpartition(".")[2], e["eventType"]) for e in events]
        if run == "failed":
            [error] = [
                e["run"]["facets"]["errorMessage"]["message"]
                for e in events
                if "errorMessage" in e["run"].get("facets", {})
            ]
            assert error == "ResourceExhaustedError: out of memory"
        if run == "again":
            tags = [
                e["run"]["facets"].get("tags", {}).get("tags")
                for e in events
                if "facets" in e["run"]
            ]
            assert tags.count([{"key": "cached", "value": "true"}]) == 9
    assert kinds["failed"][-2:] == [("LossScorer", "FAIL"), ("sd-finetuning", "FAIL")]
    assert kinds["running"][-1] == ("Trainer", "START")


def test_openlineage_by_its_own_client(small):
    """Our events can be made of the client's classes, and say the same facet schemas."""
    path, _ = small
    versions = {
        facet.__name__: facet(**arguments)._schemaURL
        for facet, arguments in (
            (facet_v2.tags_run.TagsRunFacet, {}),
            (facet_v2.tags_dataset.TagsDatasetFacet, {}),
            (facet_v2.execution_parameters_run.ExecutionParametersRunFacet, {}),
            (facet_v2.job_type_job.JobTypeJobFacet, {"processingType": "", "integration": ""}),
            (
                facet_v2.error_message_run.ErrorMessageRunFacet,
                {"message": "", "programmingLanguage": ""},
            ),
            (facet_v2.dataset_type_dataset.DatasetTypeDatasetFacet, {"datasetType": ""}),
        )
    }
    for line in export(path, "all", "openlineage").splitlines():
        event = json.loads(line)
        event_v2.RunEvent(
            eventTime=event["eventTime"],
            producer=event["producer"],
            eventType=event_v2.RunState(event["eventType"]),
            run=event_v2.Run(event["run"]["runId"]),
            job=event_v2.Job(event["job"]["namespace"], event["job"]["name"]),
            inputs=[event_v2.InputDataset(d["namespace"], d["name"]) for d in event["inputs"]],
            outputs=[event_v2.OutputDataset(d["namespace"], d["name"]) for d in event["outputs"]],
        )
        for url in re.findall(r'"_schemaURL": "([^"]*)"', line):
            name = url.rpartition("/")[2]
            assert url == versions.get(name, url)


def test_openlineage_refuses_what_is_not_valid(small):
    path, _ = small
    event = json.loads(export(path, "first", "openlineage").splitlines()[0])
    openlineage.validate(event)
    for change in (
        {"eventTime": "yesterday"},
        {"eventType": "ENDED"},
        {"run": {"runId": "seven"}},
        {"job": {"name": "no namespace"}},
        {"producer": "not a uri"},
        {"inputs": [{"namespace": "file"}]},
    ):
        with pytest.raises(lineage.LineageError, match="OpenLineage cannot express"):
            openlineage.validate({**event, **change})


def test_openlineage_names_buckets(tmp_path):
    maker = StoreMaker()
    for uri in ("gs://bucket/a/b", "", "file:///a/b"):
        artifact = maker.artifact("Model", uri)
        maker.execution("run", "Trainer", COMPLETE, {}, {}, {"model": [artifact]})
    maker.save(tmp_path / "db")
    events = [json.loads(x) for x in export(tmp_path / "db", "run", "openlineage").splitlines()]
    assert [(d["namespace"], d["name"]) for e in events for d in e["outputs"]] == [
        ("gs://bucket", "a/b"),
        ("mlmd", "artifact/2"),
        ("file", "/a/b"),
    ]


def test_dot(small):
    path, made = small
    dot = export(path, "failed", "dot")
    assert f'"step-{_step(path, "failed", "LossScorer")}" [label="LossScorer\\nfailed' in dot
    assert '"artifact-' in dot
    traced = export(path, "release:2", "dot")
    assert f'"artifact-{made["first"]["model"][0].id}"' in traced


def _step(path, run, node):
    with lineage.locate(str(path)).open() as store:
        return store.latest_step(node, store.find_run_id(run)).id


@pytest.mark.parametrize("what", ["run", "trace"])
def test_dot_of_hostile_names(hostile, what):
    """Every quoted string ends where it should; Graphviz itself agrees where it is installed."""
    for text in HOSTILE:
        dot = export(hostile, text if what == "run" else "artifact:1", "dot")
        unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", dot, flags=re.DOTALL)
        assert re.fullmatch(r"[A-Za-z\s{}\[\]=,;>-]*", unquoted), unquoted
        if shutil.which("dot"):
            subprocess.run(["dot", "-Tsvg"], input=dot, text=True, check=True, capture_output=True)


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements = []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


def _elements(page):
    parser = _Page()
    parser.feed(page)
    return parser.elements


@pytest.mark.parametrize("what", ["first", "release:2", "all"])
def test_page_in_one_file(small, what):
    path, _ = small
    page = export(path, what, "html")
    elements = _elements(page)
    assert not [tag for tag, _ in elements if tag in ("script", "link", "iframe", "object")]
    places = {attributes["id"] for _, attributes in elements if "id" in attributes}
    addresses = {a["href"] for tag, a in elements if tag == "a" and "href" in a}
    assert addresses
    assert all(a.startswith("#") and a[1:] in places for a in addresses)
    assert "default-src 'none'" in page
    assert "@media (prefers-color-scheme: dark)" in page


def test_a_screen_reader_finds_nothing_amiss_in_a_file(small, tmp_path):
    path, _ = small
    with browser() as chromium:
        for what in ("first", "release:2", "all"):
            (tmp_path / "page.html").write_text(export(path, what, "html"))
            assert findings_of_file(chromium, tmp_path / "page.html") == []


def test_a_releases_page_begins_with_its_verdict_and_what_is_new(small):
    path, _ = small
    with lineage.locate(str(path)).open() as store:
        first, second = (
            pages.Pages(store, pages.Urls(), []).trace(f"release:{version}") for version in (1, 2)
        )
    assert "<p>This is the first release.</p>" in first
    assert "<dt>held-out loss</dt><dd>0.16 (-20.0 % from what" in second
    verdict, since, folded = (
        second.index(text) for text in (">held-out loss<", ">Since release 1<", "<details>")
    )
    assert verdict < since < folded
    changed = second[since:folded]
    assert re.search("loss</td><td[^>]*>0.17</td><td[^>]*>0.16</td>", changed)
    # What is the same in both is not said.
    assert "custom_config.preset" not in changed


def test_page_has_its_pictures(tmp_path):
    uri = tmp_path / "artifacts" / "report"
    uri.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(uri / "loss_curve.png")
    maker = StoreMaker()
    report = maker.artifact("components.EvaluationReport", str(uri))
    maker.execution("run", "EvaluationReport", COMPLETE, {}, {}, {"report": [report]})
    maker.save(tmp_path / "db")
    page = export(tmp_path / "db", "run", "html", [str(tmp_path)])
    assert 'src="data:image/png;base64,' in page
    assert "data:image/png" not in export(tmp_path / "db", "run", "html")


def test_pages_of_hostile_text_have_no_elements_of_its_own(hostile):
    harmless = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "section",
        "h1",
        "h2",
        "h3",
        "dl",
        "dt",
        "dd",
        "p",
        "a",
        "span",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "details",
        "summary",
        "svg",
        "defs",
        "marker",
        "path",
        "g",
        "rect",
        "text",
        "form",
        "label",
        "input",
        "button",
        "select",
        "option",
        "abbr",
        "ul",
        "li",
        "polyline",
        "line",
        "circle",
    }
    for what in (*HOSTILE, "artifact:1", "all"):
        page = export(hostile, what, "html")
        for tag, attributes in _elements(page):
            assert tag in harmless
            assert not [name for name in attributes if name.startswith("on")]
            address = urllib.parse.urlsplit(attributes.get("href", "#"))
            assert address.scheme == ""


def test_drawing_is_sound(small):
    path, made = small
    with lineage.locate(str(path)).open() as store:
        steps = store.steps(store.find_run_id("second"))
        links = store.links(executions=[e.id for e in steps])
        artifacts = {a.id: a for a in store.artifacts(k.artifact_id for k in links)}
    drawn = drawing.draw(steps, links, artifacts)
    svg = ElementTree.fromstring(drawing.to_svg(drawn, "x", lambda node: f"#{node.key}"))
    name = "{http://www.w3.org/2000/svg}"
    boxes = {}
    for link in svg.iter(f"{name}a"):
        rect = link.find(f"{name}rect")
        boxes[link.get("href")[1:]] = [int(rect.get(k)) for k in ("x", "y", "width", "height")]
    assert set(boxes) == {node.key for node in drawn.nodes}
    # Boxes do not overlap, lie on the drawing, and stand below what they came from.
    width, height = int(svg.get("width")), int(svg.get("height"))
    for key, (x, y, w, h) in boxes.items():
        assert min(x, y) >= 0
        assert x + w <= width
        assert y + h <= height
        for other, (ox, oy, _, _) in boxes.items():
            assert key == other or abs(x - ox) >= w or abs(y - oy) >= h
    for start, end, _ in drawn.edges:
        assert boxes[start][1] < boxes[end][1]
    baseline = made["first"]["model"][0].id
    assert (
        f"artifact-{baseline}",
        f"step-{_step(path, 'second', 'LossScorer')}",
        "baseline_model",
    ) in drawn.edges


def test_drawing_of_many_and_of_circles(tmp_path):
    maker = StoreMaker()
    several = [maker.artifact("Model") for _ in range(30)]
    maker.execution("run", "A", inputs={"x": several[:1]}, outputs={"many": several})
    maker.save(tmp_path / "db")
    with lineage.locate(str(tmp_path / "db")).open() as store:
        steps = store.steps(store.find_run_id("run"))
        links = store.links(executions=[1])
        artifacts = {a.id: a for a in store.artifacts(range(1, 31))}
    drawn = drawing.draw(steps, links, artifacts)
    assert [node.label for node in drawn.nodes] == ["A", "Model", "Model", "Model", "27 more"]
    ElementTree.fromstring(drawing.to_svg(drawn, "x"))
    assert drawing.to_svg(drawing.Drawing((), ()), "x") == ""
