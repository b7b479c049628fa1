"""What made an artifact, and what it touched."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence

from pipeline.lineage import files
from pipeline.lineage.model import (
    Artifact,
    Execution,
    LineageError,
    Link,
    Run,
    Value,
    shown_time,
)
from pipeline.lineage.sorting import version_order
from pipeline.lineage.store import Store, escape_like, taken_apart
from storage.model_manifest import MODEL_MANIFEST_NAME

MADE, DESCRIBES, BEFORE, COMPARED = "made it", "describes it", "started from", "baseline"

_RELEASE, _ARTIFACT = "release:", "artifact:"
_PUSHED_TYPE, _MODEL_TYPE, _BLESSING_TYPE = "PushedModel", "Model", "ModelBlessing"
_STATISTICS_TYPES = ("ExampleStatistics", "Schema", "ExampleAnomalies", "DatasetReport")
_DESCRIBING_TYPES = (*_STATISTICS_TYPES, "RejectedRows", "ModelEvaluation", "EvaluationReport")
_WENT_ON, _STARTED_FROM = "went_on_", "started_from"
_MANIFEST = f"Format-Serving/{MODEL_MANIFEST_NAME}"
_MIN_HASH_DIGITS = 6
_RELEASE_FILE = re.compile(r"(.*)/releases/([0-9]+)\.json")

# The sections of a trace, in their order.
SECTIONS = (
    "release",
    "data",
    "rejected rows",
    "statistics",
    "base weights",
    "preparation",
    "hyperparameters",
    "evaluation",
    "blessing",
    "code",
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing to know about an artifact.

    Attributes:
        section: One of `SECTIONS`.
        name: What it is, such as `dataset`.
        value: What it was.
        step: The step that says so.
        execution_id: The execution of that step.
        artifact_id: The artifact that says so; None if the step's settings do.
    """

    section: str
    name: str
    value: Value
    step: str
    execution_id: int | None
    artifact_id: int | None


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """A step that contributed to an artifact.

    Attributes:
        execution: The execution that did the work, not one that took it from the cache.
        role: MADE, DESCRIBES, BEFORE (it made a model that a training started from) or COMPARED.
        links: Its inputs and outputs.
    """

    execution: Execution
    role: str
    links: tuple[Link, ...]


@dataclasses.dataclass(frozen=True)
class Trace:
    """Everything that made an artifact.

    Attributes:
        subject: The artifact.
        release: Its version, if it was pushed.
        run: The run that made it; None if the store does not say.
        facts: What is known, by section.
        steps: The steps, earliest first.
        artifacts: All inputs and outputs of the steps, by id.
    """

    subject: Artifact
    release: str | None
    run: Run | None
    facts: tuple[Fact, ...]
    steps: tuple[TracedStep, ...]
    artifacts: dict[int, Artifact]


@dataclasses.dataclass(frozen=True)
class Touched:
    """A model or a release that something touched.

    Attributes:
        artifact: The model or pushed model.
        version: The version of a release; None for a model.
        run: The run that made it.
        made_of: Whether it was made from the thing; otherwise it was only compared with something
            that was.
    """

    artifact: Artifact
    version: str | None
    run: Run | None
    made_of: bool


@dataclasses.dataclass(frozen=True)
class Impact:
    """Everything that something touched.

    Attributes:
        matched: What it was found as, such as `dataset = data/creatures in CaptionExampleGen`.
        runs: Runs that used it, or something made from it, themselves or from the cache.
        models: Models.
        releases: Pushed models.
        artifacts: How many artifacts of each type, including itself.
    """

    matched: tuple[str, ...]
    runs: tuple[Run, ...]
    models: tuple[Touched, ...]
    releases: tuple[Touched, ...]
    artifacts: dict[str, int]


def find_artifact(store: Store, text: str) -> Artifact:
    """Finds the artifact that `text` names.

    Args:
        store: Where to look.
        text: `release:3`, `artifact:41`, a version, an id, a path or URL, a release file such as
            `serving_model/releases/3.json`, a name, or `latest` for the latest release. A bare
            number is a release if there is one.

    Raises:
        LineageError: There is no such artifact, or more than one.
    """
    if text == "latest":
        pushed = [a for a in _pushed(store) if a.properties.get("pushed_version")]
        if not pushed:
            raise LineageError(f"{store.name} has no release yet")
        return pushed[-1]
    if text.startswith(_ARTIFACT):
        number = text.removeprefix(_ARTIFACT)
        if not _is_number(number):
            raise LineageError(f"{text!r} is not an artifact: give a number, such as artifact:41")
        return store.artifact(int(number))
    version = text.removeprefix(_RELEASE)
    releases = store.artifacts(store.artifacts_with("pushed_version", version))
    # A push that is repeated, because its code changed or it died, is the same release again.
    if len({r.properties.get("pushed_destination") for r in releases}) == 1:
        return releases[0]
    if releases:
        which = ", ".join(
            f"{_ARTIFACT}{r.id} in {r.properties.get('pushed_destination', r.uri)}"
            for r in releases
        )
        raise LineageError(
            f"there are {len(releases)} releases with version {version}: choose one of {which}"
        )
    if text.startswith(_RELEASE):
        known = sorted(
            {str(v) for a in _pushed(store) if (v := a.properties.get("pushed_version"))},
            key=version_order,
        )
        raise LineageError(
            f"there is no release {version!r} in {store.name}; "
            + (f"there are: {_some(known)}" if known else "nothing was pushed yet")
        )
    if _is_number(text):
        return store.artifact(int(text))
    if (file := _RELEASE_FILE.fullmatch(os.path.abspath(text))) is not None:
        of_version = store.artifacts(store.artifacts_with("pushed_version", file[2]))
        pushed = [a for a in of_version if a.properties.get("pushed_destination") == file[1]]
        if pushed:
            return pushed[0]
    found = [
        i
        for uri in dict.fromkeys((text, os.path.abspath(text)))
        for i in store.artifacts_with_uri(uri)
    ] or store.artifacts_named(text)
    if not found:
        raise LineageError(
            f"there is no release, artifact, path or name {text!r} in {store.name}; releases and "
            "artifacts can be given as release:3 and artifact:41"
        )
    return store.artifact(found[-1])


@dataclasses.dataclass(frozen=True)
class Standing:
    """The data that an artifact comes from and the releases it went into.

    Attributes:
        run: The run that made it.
        datasets: The datasets it was made from.
        releases: For a model, the versions of its releases.
    """

    run: Run | None
    datasets: tuple[str, ...]
    releases: tuple[str, ...]


def standing(store: Store, artifact_id: int) -> Standing:
    """Summarises where an artifact comes from and what became of it."""
    graph = store.graph
    maker = graph.maker(artifact_id)
    run_id = None if maker is None else store.run_of.get(maker)
    made_by = graph.upstream([artifact_id], comparisons=False).executions
    datasets = [e.settings.get("dataset") for e in store.executions(made_by)]
    is_model = store.artifact_types.get(artifact_id) in (_MODEL_TYPE, _PUSHED_TYPE)
    touched = graph.downstream([artifact_id], comparisons=False).artifacts if is_model else ()
    pushed = store.artifacts(i for i in touched if store.artifact_types[i] == _PUSHED_TYPE)
    versions = [a.properties.get("pushed_version") for a in pushed]
    return Standing(
        run=store.runs([run_id])[0] if run_id is not None else None,
        datasets=tuple(dict.fromkeys(str(name) for name in datasets if name)),
        releases=tuple(dict.fromkeys(str(version) for version in versions if version is not None)),
    )


def trace(store: Store, text: str, roots: Sequence[str] = ()) -> Trace:
    """Everything that made an artifact.

    Args:
        store: Where to look.
        text: As for `find_artifact`.
        roots: Folders in which a model's manifest may be read. The manifest has the hashes of the
            base weights, file by file, and the versions of the software that trained the model.

    Raises:
        LineageError: There is no such artifact.
    """
    subject = find_artifact(store, text)
    graph = store.graph
    own = graph.upstream([subject.id], comparisons=False, models_before=False)
    made = graph.upstream([subject.id], comparisons=False)
    whole = graph.upstream([subject.id])
    maker = graph.maker(subject.id)
    run_id = None if maker is None else store.run_of.get(maker)
    describing = _describing(store, made.artifacts, run_id) - whole.executions
    roles = {
        **dict.fromkeys(whole.executions, COMPARED),
        **dict.fromkeys(made.executions, BEFORE),
        **dict.fromkeys(own.executions, MADE),
        **dict.fromkeys(describing, DESCRIBES),
    }
    links: dict[int, list[Link]] = collections.defaultdict(list)
    for link in store.links(executions=roles):
        links[link.execution_id].append(link)
    steps = tuple(TracedStep(e, roles[e.id], tuple(links[e.id])) for e in store.executions(roles))
    used = {link.artifact_id for several in links.values() for link in several} | {subject.id}
    artifacts = {a.id: a for a in store.artifacts(used)}
    version = subject.properties.get("pushed_version")
    more = [*_went_on_from(store, steps), *_started_from(store, steps)]
    facts = _sorted_facts(subject, steps, artifacts, roots, more)
    return Trace(
        subject=subject,
        release=str(version) if version is not None else None,
        run=store.runs([run_id])[0] if run_id is not None else None,
        facts=tuple(facts),
        steps=steps,
        artifacts=artifacts,
    )


def impact(store: Store, text: str, roots: Sequence[str] = ()) -> Impact:
    """Everything that a dataset, an artifact or weights touched.

    Args:
        store: Where to look.
        text: As for `find_artifact`; or the value of any setting or property, such as the path,
            revision or fingerprint of a dataset, or a hash of weights (or the start of it).
        roots: Folders in which models' manifests may be read. The manifests have the hashes of
            single weight files.

    Raises:
        LineageError: Nothing has this name.
    """
    starts, executions, matched = _starts(store, text, roots)
    graph = store.graph
    made, touched = graph.downstream(starts, comparisons=False), graph.downstream(starts)
    types = {i: store.artifact_types[i] for i in touched.artifacts}
    involved = {
        *executions,
        *touched.executions,
        *(e for a in touched.artifacts - starts for e in graph.leavers(a)),
        *(e for a in starts for e in graph.leavers(a)),
    }
    run_ids = {store.run_of[e] for e in involved if e in store.run_of}
    runs = {run.id: run for run in store.runs(run_ids)}
    models = store.artifacts(i for i, t in types.items() if t in (_MODEL_TYPE, _PUSHED_TYPE))
    makers = {a.id: graph.maker(a.id) for a in models}

    def touched_by(artifact: Artifact) -> Touched:
        version = artifact.properties.get("pushed_version")
        maker = makers[artifact.id]
        return Touched(
            artifact,
            None if version is None else str(version),
            runs.get(store.run_of.get(maker, -1)) if maker is not None else None,
            artifact.id in made.artifacts,
        )

    return Impact(
        matched=tuple(matched),
        runs=tuple(sorted(runs.values(), key=lambda r: (r.started, r.id))),
        models=tuple(touched_by(a) for a in models if a.type == _MODEL_TYPE),
        releases=tuple(
            touched_by(a)
            for a in models
            if a.type == _PUSHED_TYPE and a.properties.get("pushed_version") is not None
        ),
        artifacts=dict(collections.Counter(types.values()).most_common()),
    )


def _starts(
    store: Store, text: str, roots: Sequence[str]
) -> tuple[frozenset[int], set[int], list[str]]:
    """Artifacts where an impact begins, executions that are involved, and what was matched."""
    if not text.startswith((_RELEASE, _ARTIFACT)):
        by_value = _with_value(store, text)
        if by_value[2]:
            return by_value
        models, matched = _with_weights(store, text, roots)
        if models:
            return models, set(), matched
    try:
        artifact = find_artifact(store, text)
    except LineageError:
        if text.startswith((_RELEASE, _ARTIFACT)):
            raise
        raise LineageError(
            f"no dataset, weights, release, artifact or path in {store.name} is called {text!r}: "
            "give a dataset's path, revision or fingerprint, a hash of weights, or an artifact, "
            "such as artifact:41"
        ) from None
    return (
        frozenset([artifact.id]),
        set(),
        [f"artifact {artifact.id} ({artifact.type}) {artifact.uri}".rstrip()],
    )


def _with_value(store: Store, text: str) -> tuple[frozenset[int], set[int], list[str]]:
    if _is_number(text) and len(text) < _MIN_HASH_DIGITS:
        return frozenset(), set(), []
    wanted = {text, os.path.abspath(text)} if text else {text}
    # A path from elsewhere: `data/creatures` means `/home/me/project/data/creatures`.
    tail = f"/{text}" if "/" in text.strip("/") else None

    def meant(value: Value) -> bool:
        return isinstance(value, str) and (
            value in wanted
            or _begins_hash(value, text)
            or (tail is not None and value.endswith(tail))
        )

    candidates: dict[str, set[int]] = {"Execution": set(), "Artifact": set()}
    for table, ids in candidates.items():
        for word in wanted:
            escaped = escape_like(word)
            for pattern in (f"{escaped}%", f'{{%"{escaped}%', f"%/{escaped}%"):
                ids |= {i for i, _, _ in store.property_texts(table, pattern)}
    matched: collections.Counter[str] = collections.Counter()
    starts, involved = set(), set()
    for execution in store.executions(candidates["Execution"]):
        for name, value in execution.settings.items():
            if meant(value):
                matched[f"{name} = {value} in {execution.node}"] += 1
                involved.add(execution.id)
                starts.update(store.graph.outputs(execution.id))
    for artifact in store.artifacts(candidates["Artifact"]):
        for name, value in artifact.properties.items():
            # Where a model was pushed is not a property of the data it was made from.
            if meant(value) and not name.startswith("pushed_"):
                matched[f"{name} = {value} on {artifact.type} artifacts"] += 1
                starts.add(artifact.id)
    return frozenset(starts), involved, [f"{what} ({n})" for what, n in matched.items()]


def _describing(store: Store, made: Iterable[int], run_id: int | None) -> set[int]:
    """Steps of a run that only describe what was made: statistics, evaluation, reports."""
    if run_id is None:
        return set()
    graph = store.graph
    originals = {
        maker
        for step in store.steps(run_id)
        for artifact in graph.outputs(step.id)
        if (maker := graph.maker(artifact)) is not None
    }
    outputs = {a for e in originals for a in graph.outputs(e)}
    types = {a.id: a for a in store.artifacts(outputs)}
    known = set(made)
    found: set[int] = set()
    while True:
        more = {
            e
            for e in originals - found
            if any(a in known for a in graph.inputs(e))
            and all(_describes(types[a]) for a in graph.outputs(e))
        }
        if not more:
            return found
        found |= more
        known |= {a for e in more for a in graph.outputs(e)}


def _describes(artifact: Artifact) -> bool:
    kind = artifact.type.rpartition(".")[2]
    return (
        kind in (*_DESCRIBING_TYPES, _BLESSING_TYPE)
        or "baseline" in artifact.properties
        or kind.endswith("Report")
    )


def _sorted_facts(
    subject: Artifact,
    steps: Sequence[TracedStep],
    artifacts: dict[int, Artifact],
    roots: Sequence[str],
    more: Iterable[Fact],
) -> list[Fact]:
    facts = [
        f
        for step in steps
        if step.role in (MADE, DESCRIBES)
        for f in _facts(step, artifacts)
        if f.value not in (None, "", "null") and not _is_noise(f.name)
    ]
    # A fact that several artifacts state is listed once.
    once = {
        (f.section, f.name, f.value): f
        for f in reversed(facts)
        if f.section == "evaluation" or f.name == "tfx_version"
    }
    facts = [f for f in facts if once.get((f.section, f.name, f.value), f) is f]
    made = [f for f in facts if not (f.section == "release" and f.artifact_id != subject.id)]
    compared = {
        link.artifact_id
        for step in steps
        if step.role == MADE
        for link in step.links
        if not link.output and link.key.startswith("baseline")
    }
    made += [
        Fact("evaluation", "baseline_model", f"artifact {i} ({artifacts[i].uri})", "", None, i)
        for i in sorted(compared)
    ]
    for step in steps:
        if step.role == MADE:
            made += _of_manifest(step, artifacts, roots)
    made += more
    return sorted(made, key=lambda f: SECTIONS.index(f.section))


def _went_on_from(store: Store, steps: Iterable[TracedStep]) -> Iterator[Fact]:
    """The models of the shorter training that a traced training continued."""
    for step in steps:
        if step.role != MADE:
            continue
        for model in store.artifacts(link.artifact_id for link in step.links if link.output):
            training = model.properties.get(f"{_WENT_ON}from")
            if not isinstance(training, str):
                continue
            for shorter in store.artifacts(store.artifacts_with("training_id", training)):
                if shorter.type == _MODEL_TYPE:
                    yield Fact(
                        "hyperparameters",
                        f"{_WENT_ON}from_model",
                        f"artifact {shorter.id} ({shorter.uri})",
                        step.execution.node,
                        step.execution.id,
                        shorter.id,
                    )


def _started_from(store: Store, steps: Iterable[TracedStep]) -> Iterator[Fact]:
    """The model that a traced training started from, and the data of all earlier models."""
    for step in steps:
        of_step = step.execution.node, step.execution.id
        if step.role == MADE:
            for model in store.artifacts(store.graph.started_from(step.execution.id)):
                releases = standing(store, model.id).releases
                pushed = f"release {releases[0]}, " if releases else ""
                shown = f"{pushed}artifact {model.id} ({model.uri})"
                yield Fact("base weights", f"{_STARTED_FROM}_model", shown, *of_step, model.id)
        elif step.role == BEFORE:
            for name in ("dataset", "dataset_fingerprint"):
                if value := step.execution.settings.get(name):
                    yield Fact("data", f"earlier_{name}", value, *of_step, None)


def _of_manifest(
    step: TracedStep, artifacts: dict[int, Artifact], roots: Sequence[str]
) -> Iterator[Fact]:
    for link in step.links:
        artifact = artifacts[link.artifact_id]
        if not link.output or artifact.type != _MODEL_TYPE:
            continue
        for name, value in _manifest(artifact, roots).items():
            part = name.removeprefix("manifest.")
            if part.startswith("base_weights"):
                section = "base weights"
            elif part == "git_commit" or part.startswith("versions."):
                section = "code"
            else:
                continue
            yield Fact(section, name, value, step.execution.node, step.execution.id, artifact.id)


def _manifest(model: Artifact, roots: Sequence[str]) -> dict[str, Value]:
    """The manifest in a model's files; empty if it cannot be read."""
    try:
        content = json.loads(files.find_file(model, _MANIFEST, roots).path.read_bytes())
    except (LineageError, OSError, ValueError, RecursionError):
        return {}
    return taken_apart("manifest", content) if isinstance(content, dict) else {}


def _with_weights(
    store: Store, text: str, roots: Sequence[str]
) -> tuple[frozenset[int], list[str]]:
    """Models that started from weights with this hash."""
    matched: collections.Counter[str] = collections.Counter()
    found = set()
    if roots and len(text) >= _MIN_HASH_DIGITS:
        for model in store.artifacts(store.artifacts_of_type(_MODEL_TYPE)):
            for name, value in _manifest(model, roots).items():
                if "weights" in name and isinstance(value, str) and _begins_hash(value, text):
                    matched[f"{name} = {value} of models"] += 1
                    found.add(model.id)
    return frozenset(found), [f"{what} ({n})" for what, n in matched.items()]


def _facts(step: TracedStep, artifacts: dict[int, Artifact]) -> Iterator[Fact]:
    execution = step.execution
    inputs = [artifacts[k.artifact_id] for k in step.links if not k.output]
    outputs = [artifacts[k.artifact_id] for k in step.links if k.output]
    types = {a.type for a in outputs}
    if not inputs:
        section = "data"
    elif _MODEL_TYPE in types:
        section = "hyperparameters"
    elif _PUSHED_TYPE in types:
        section = "release"
    elif types & set(_STATISTICS_TYPES):
        section = "statistics"
    elif any(_describes(a) for a in outputs):
        section = "evaluation"
    else:
        section = "preparation"
    for name, value in execution.settings.items():
        yield Fact(
            _section_of(name, section),
            name.removeprefix("custom_config.").removeprefix("training."),
            value,
            execution.node,
            execution.id,
            None,
        )
    for artifact in outputs:
        kind = artifact.type.rpartition(".")[2]
        if kind == "RejectedRows":
            of_artifact = "rejected rows"
        elif kind == _BLESSING_TYPE:
            of_artifact = "blessing"
        elif kind in _STATISTICS_TYPES or kind.endswith("DatasetReport"):
            of_artifact = "statistics"
        elif section == "hyperparameters":
            of_artifact = "evaluation"
        else:
            of_artifact = section
        for name, value in artifact.properties.items():
            # The numbers of an evaluation, wherever they are recorded.
            where = (
                "evaluation" if of_artifact == "blessing" and type(value) is float else of_artifact
            )
            yield Fact(
                _section_of(name, where),
                name,
                value,
                execution.node,
                execution.id,
                artifact.id,
            )
        if of_artifact in ("rejected rows", "statistics") and artifact.uri:
            yield Fact(of_artifact, kind, artifact.uri, execution.node, execution.id, artifact.id)
        if kind == _PUSHED_TYPE:
            yield Fact(
                "release",
                "pushed_at",
                shown_time(execution.ended),
                execution.node,
                execution.id,
                artifact.id,
            )


def _section_of(name: str, otherwise: str) -> str:
    last = name.rpartition(".")[2]
    if last.endswith(("code_version", "tfx_version", "run_fn", "module_file")):
        return "code"
    if "weights" in last or last in ("encoders_hash", "hub_revision", _STARTED_FROM):
        return "base weights"
    if last.startswith("rejected_"):
        return "rejected rows"
    if last.startswith(_WENT_ON):
        return "hyperparameters"
    return otherwise


def _is_noise(name: str) -> bool:
    """Whether TFX writes this property for its own use, on everything alike."""
    last = name.rpartition(".")[2]
    return last.startswith("_") or last in ("is_external", "TYPE_NAME", "stats_dashboard_link")


def _pushed(store: Store) -> list[Artifact]:
    return store.artifacts(store.artifacts_of_type(_PUSHED_TYPE))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _begins_hash(value: str, text: str) -> bool:
    return (
        len(text) >= _MIN_HASH_DIGITS
        and value.startswith(text)
        and all(c in string.hexdigits for c in value)
    )


def _some(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[-most:]) + more
