"""Releases over time: how good each is, what it was trained on, which first knew a picture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.lineage import files, scores, tracing
from pipeline.lineage.model import Artifact, Execution, LineageError, Run, Value, short_type
from pipeline.lineage.row_changes import RowChanges, row_changes
from pipeline.lineage.sorting import version_order
from pipeline.lineage.store import Store
from storage import filesystem, row_index

_EXAMPLES, _MODEL = "Examples", "Model"
_TRAINED_ON, _HELD_OUT = "train", "eval"
_MODEL_RUN, _ANOMALIES = "ModelRun", "ExampleAnomalies"
_SCORER, _SCORED = "LossScorer", "model"
# Settings that two losses must share to be comparable.
_JUDGED_BY = ("preset", "image_size", "base_weights_hash", "num_strata", "seed")
_PROMPTS = "custom_config.validation.prompts"
_PICTURE = re.compile(r"validation/step_(?P<step>\d+)/(?P<number>\d+)\.png")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture that was drawn at the end of a release's training.

    Attributes:
        prompt: The prompt.
        model_run: The artifact that has its file.
        file: The file.
    """

    prompt: str
    model_run: Artifact
    file: files.File


@dataclasses.dataclass(frozen=True)
class Release:
    """A release, and how it differs from the one before.

    Attributes:
        version: Its version.
        artifact: The pushed model.
        run: The run that made it; None if the store does not say.
        rows: Number of rows of its dataset; None if the row index no longer exists.
        changes: What differs from the dataset of the release before; None for the first release,
            and if one of the two row indexes is missing.
        size: Size of its model in bytes; None if the model no longer exists.
        pictures: The pictures drawn at the end of its training that still exist.
        fixed_loss: Its loss on `Releases.fixed_examples`; None if unknown.
        drift: What drifted away from the dataset of the model that it started from, and how far;
            `none` if nothing did; None if nothing was compared.
    """

    version: str
    artifact: Artifact
    run: Run | None
    rows: int | None
    changes: RowChanges | None
    size: int | None
    pictures: tuple[Drawn, ...]
    fixed_loss: float | None
    drift: str | None


@dataclasses.dataclass(frozen=True)
class Releases:
    """All releases.

    Attributes:
        releases: The releases, first release first.
        fixed_examples: Number of held-out examples (picture and caption) that `fixed_loss` is
            computed over: the examples that all compared releases were evaluated on, at the same
            timesteps and noise.
    """

    releases: tuple[Release, ...]
    fixed_examples: int

    @property
    def note(self) -> str:
        """What the fixed losses are computed over, in a sentence."""
        compared = sum(release.fixed_loss is not None for release in self.releases)
        if not compared:
            return "There is no held-out example on which all releases were evaluated."
        return (
            f"The fixed loss is the loss on the same {self.fixed_examples:,} held-out examples, at "
            f"the same timesteps and noise, for the {compared:,} releases that were evaluated on "
            "all of them."
        )


@dataclasses.dataclass(frozen=True)
class Known:
    """Which releases know a picture or a caption.

    Attributes:
        asked_for: What was looked for, in words.
        captions: Its captions in the datasets.
        trained_on: Versions of the releases that were trained on it, in order.
        held_out: Versions of the releases for which it was held out.
        unknown: Versions of the releases whose row index no longer exists.
    """

    asked_for: str
    captions: tuple[str, ...]
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    unknown: tuple[str, ...]


def history(store: Store, roots: Sequence[str]) -> Releases:
    """Returns all releases, and how good each is on the same held-out examples.

    Args:
        store: Where to look.
        roots: Folders whose files may be read, for the rows of the datasets.

    Raises:
        LineageError: There is no release.
    """
    runs = makers(store)
    found: list[Release] = []
    before: Artifact | None = None
    losses, number = _fixed_losses(store, roots)
    for version, pushed in released(store).items():
        examples = _examples_of(store, pushed)
        rows = None if examples is None else _number_of_rows(examples, roots)
        changes = None
        if before is not None and examples is not None:
            try:
                changes = row_changes([before], [examples], roots)
            except LineageError:
                # The release is listed all the same, without the changes.
                changes = None
        model = model_of(store, pushed)
        found.append(
            Release(
                version,
                pushed,
                runs.get(version),
                rows,
                changes,
                None if model is None else _size(model, roots),
                () if model is None else tuple(_pictures(store, model, roots)),
                losses.get(version),
                _drift(store, runs.get(version)),
            )
        )
        before = examples
    return Releases(tuple(found), number)


def added(store: Store, first: str, second: str, roots: Sequence[str]) -> RowChanges:
    """Compares the datasets of two releases, row by row.

    Args:
        store: Where to look.
        first: A version, or `release:` and a version.
        second: Another version.
        roots: Folders whose files may be read.

    Raises:
        LineageError: There is no such release, or its row index no longer exists.
    """
    sides = []
    for version in (first, second):
        name = version if version.startswith("release:") else f"release:{version}"
        pushed = tracing.find_artifact(store, name)
        if (examples := _examples_of(store, pushed)) is None:
            raise LineageError(f"{store.name} does not say what {name} was trained on")
        sides.append(examples)
    return row_changes([sides[0]], [sides[1]], roots)


def known(store: Store, what: str, roots: Sequence[str]) -> Known:
    """Finds the releases that were trained on a picture or a caption.

    Args:
        store: Where to look.
        what: A picture file, exactly as in the dataset; the SHA-256 (hex) of such a file or of a
            row; or a caption.
        roots: Folders whose files may be read.

    Raises:
        LineageError: No release's dataset has it, or nothing was released.
    """
    wanted, shown = _wanted(what)
    trained_on: list[str] = []
    held_out: list[str] = []
    unknown: list[str] = []
    captions: dict[str, None] = {}
    for version, pushed in released(store).items():
        folders = [_index(e, roots) for e in all_examples_of(store, pushed)]
        if not folders or None in folders:
            unknown.append(version)
        for split, versions in ((_TRAINED_ON, trained_on), (_HELD_OUT, held_out)):
            rows = [
                row
                for folder in filter(None, folders)
                for row in row_index.read_rows(folder, split)
                if wanted in (row.picture, row.id, row.caption)
            ]
            if rows:
                versions.append(version)
                captions |= dict.fromkeys(row.caption for row in rows)
    # It may be a training picture of an earlier dataset and held out in a later one.
    held_out = [version for version in held_out if version not in trained_on]
    if not trained_on and not held_out:
        left_out = f"; for {', '.join(unknown)} this is no longer known" if unknown else ""
        raise LineageError(f"no release's dataset has {shown}{left_out}")
    return Known(shown, tuple(captions), tuple(trained_on), tuple(held_out), tuple(unknown))


def _wanted(what: str) -> tuple[str, str]:
    """The value to look for in the rows, and its name for the user."""
    if Path(what).is_file():
        digest = hashlib.sha256(Path(what).read_bytes()).hexdigest()
        return digest, f"the picture {what} (SHA-256 {digest[:12]}...)"
    if DIGEST.fullmatch(what.lower()):
        return what.lower(), f"a picture or a row with SHA-256 {what[:12]}..."
    return what, f"the caption {what!r}"


def released(store: Store) -> Mapping[str, Artifact]:
    """The pushed models by version, in order; for a repeated push, the first."""
    found: dict[str, Artifact] = {}
    for pushed in store.artifacts(store.artifacts_of_type("PushedModel")):
        if version := str(pushed.properties.get("pushed_version", "")):
            found.setdefault(version, pushed)
    if not found:
        raise LineageError(f"{store.name} has no release yet")
    return dict(sorted(found.items(), key=lambda item: version_order(item[0])))


def makers(store: Store) -> dict[str, Run]:
    """The run that made each release, not a later run that took it from the cache."""
    found: dict[str, Run] = {}
    # The latest runs come first.
    for run in store.runs():
        found |= dict.fromkeys(run.releases, run)
    return found


def _examples_of(store: Store, pushed: Artifact) -> Artifact | None:
    """The dataset that a release was trained on, without the datasets of earlier models."""
    return next(all_examples_of(store, pushed), None)


def all_examples_of(store: Store, pushed: Artifact) -> Iterator[Artifact]:
    """The datasets that a release or a model was trained on: its own, then earlier ones."""
    graph = store.graph
    waiting, seen = [pushed.id], {pushed.id}
    while waiting:
        artifact = waiting.pop(0)
        maker = graph.maker(artifact)
        taken = [] if maker is None else [i for i in graph.inputs(maker) if i not in seen]
        for one in store.artifacts(taken):
            # A pusher also gets the blessing, which was made from held-out pictures only.
            if short_type(one.type) not in (_EXAMPLES, _MODEL):
                continue
            seen.add(one.id)
            waiting.append(one.id)
            if short_type(one.type) == _EXAMPLES and _is_dataset(store, one):
                yield one


def _is_dataset(store: Store, examples: Artifact) -> bool:
    """Whether examples are a dataset: not made from other examples, as latents are."""
    made_by = store.graph.maker(examples.id)
    return not any(
        short_type(one.type) == _EXAMPLES
        for one in store.artifacts([] if made_by is None else store.graph.inputs(made_by))
    )


def datasets(store: Store) -> list[Artifact]:
    """All datasets that runs have ingested, first dataset first."""
    found = store.artifacts(store.artifacts_of_type(_EXAMPLES))
    # Scores, for example, are examples made from latents.
    return [one for one in found if _is_dataset(store, one)]


def _index(examples: Artifact, roots: Sequence[str]) -> str | None:
    try:
        return index_of(examples, roots)
    except LineageError:
        return None


def index_of(examples: Artifact, roots: Sequence[str]) -> str:
    """The folder with a dataset's row index; raises a `LineageError` if there is none."""
    folder = filesystem.join(files.place_of(examples, roots), row_index.FOLDER_NAME)
    if not filesystem.is_folder(folder):
        raise LineageError(f"artifact {examples.id} has no row index")
    return folder


def model_of(store: Store, pushed: Artifact) -> Artifact | None:
    """The model that was pushed as a release; None if the store does not say."""
    maker = store.graph.maker(pushed.id)
    taken = store.artifacts([] if maker is None else store.graph.inputs(maker))
    return next((one for one in taken if short_type(one.type) == _MODEL), None)


def _fixed_losses(store: Store, roots: Sequence[str]) -> tuple[dict[str, float], int]:
    """The loss of each release on the examples that all were scored on, and their number.

    Releases that were scored differently from the latest one (other noise, another size) are left
    out, and so are releases whose scores no longer exist.
    """
    judged = {}
    for version, pushed in released(store).items():
        model = model_of(store, pushed)
        scorer = None if model is None else _scorer(store, model)
        if scorer is not None and (losses := _losses(store, scorer, roots)):
            judged[version] = (_way_of_judging(scorer), losses)
    if not judged:
        return {}, 0
    way = [*judged.values()][-1][0]
    alike = {version: losses for version, (how, losses) in judged.items() if how == way}
    # Sorted, so that equal losses have equal sums.
    common = sorted(set.intersection(*(set(losses) for losses in alike.values())))
    if not common:
        return {}, 0
    return {
        version: sum(losses[key] for key in common) / len(common)
        for version, losses in alike.items()
    }, len({name for name, _ in common})


def _scorer(store: Store, model: Artifact) -> Execution | None:
    """The step that scored a model, not a step that compared another model with it."""
    steps = [
        link.execution_id
        for link in store.links(artifacts=[model.id])
        if not link.output and link.key == _SCORED
    ]
    return next((e for e in reversed(store.executions(steps)) if e.node == _SCORER), None)


def _losses(
    store: Store, scorer: Execution, roots: Sequence[str]
) -> dict[tuple[str, int], float] | None:
    for left in store.artifacts(store.graph.outputs(scorer.id)):
        if short_type(left.type) == _EXAMPLES and not left.removed:
            try:
                return scores.read_losses(files.folder_of(left, roots))
            except LineageError:
                return None
    return None


def _way_of_judging(scorer: Execution) -> tuple[Value, ...]:
    return tuple(scorer.settings.get(name) for name in _JUDGED_BY)


def _drift(store: Store, run: Run | None) -> str | None:
    """The drift that the run of a release found in its dataset."""
    if run is None:
        return None
    left = {a for step in store.step_ids(run.id) for a in store.graph.outputs(step)}
    for artifact in store.artifacts(sorted(left)):
        if short_type(artifact.type) == _ANOMALIES and "drift" in artifact.properties:
            return str(artifact.properties["drift"])
    return None


def _size(model: Artifact, roots: Sequence[str]) -> int | None:
    if model.removed:
        return None
    try:
        folder = files.folder_of(model, roots)
    except LineageError:
        return None
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _pictures(store: Store, model: Artifact, roots: Sequence[str]) -> Iterator[Drawn]:
    if (maker := store.graph.maker(model.id)) is None:
        return
    prompts = _listed(store.execution(maker).settings.get(_PROMPTS))
    for left in store.artifacts(store.graph.outputs(maker)):
        if short_type(left.type) != _MODEL_RUN:
            continue
        drawn = [
            (int(found["step"]), int(found["number"]), file)
            for file in files.list_files(left, roots).files
            if (found := _PICTURE.fullmatch(file.name))
        ]
        last = max((step for step, _, _ in drawn), default=0)
        for step, number, file in drawn:
            if step == last:
                prompt = prompts[number] if number < len(prompts) else f"prompt {number}"
                yield Drawn(prompt, left, file)


def _listed(setting: Value) -> list[str]:
    """A setting that is a list of texts."""
    try:
        found = json.loads(str(setting))
    except json.JSONDecodeError:
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _number_of_rows(examples: Artifact, roots: Sequence[str]) -> int | None:
    folder = _index(examples, roots)
    return None if folder is None else sum(1 for _ in row_index.read_rows(folder))
