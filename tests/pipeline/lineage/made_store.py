"""Stores as TFX's local runner writes them, made with ML Metadata's own client.

A thousand runs take seconds: nothing is executed, and everything is written in a few calls. As a
program it writes such a store: `python tests/pipeline/lineage/made_store.py FILE [RUNS]`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

PIPELINE = "sd-finetuning"
FIRST_DAY = 1_767_225_600_000
MINUTE = 60_000

# Other people's text, at its worst; each stands in a name, a setting, a property and an address.
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</script><script>document.title='owned'</script>",
    "{{ 7 * 7 }} ${7*7} javascript:alert(1)",
    "\x1b[31mred\x1b[0m\r\nnew line\ttab",
    "‮reversed 图片 🐉 e\u0301",
    "it's; DROP TABLE Artifact; -- 100% _under\\score",
)

State = mlmd.Execution.State
COMPLETE, CACHED, FAILED, RUNNING, CANCELED = (
    mlmd.Execution.COMPLETE,
    mlmd.Execution.CACHED,
    mlmd.Execution.FAILED,
    mlmd.Execution.RUNNING,
    mlmd.Execution.CANCELED,
)
_CLASSES = {
    "CaptionExampleGen": "components.caption_example_gen.component.CaptionExampleGen",
    "StatisticsGen": "tfx.components.statistics_gen.component.StatisticsGen",
    "SchemaGen": "tfx.components.schema_gen.component.SchemaGen",
    "CaptionValidator": "components.caption_validator.component.CaptionValidator",
    "LatentGen": "components.latent_gen.component.LatentGen",
    "Trainer": "tfx.components.trainer.component.Trainer",
    "LatestBlessedModel": "tfx.dsl.components.common.resolver.Resolver",
    "LossScorer": "components.loss_scorer.component.LossScorer",
    "Evaluator": "tfx.components.evaluator.component.Evaluator",
    "ServingPusher": "components.serving_pusher.component.ServingPusher",
}


@dataclasses.dataclass(frozen=True)
class Made:
    """An artifact of the store, by its place; ids are the place plus one."""

    place: int

    @property
    def id(self) -> int:
        return self.place + 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """What differs between runs."""

    dataset: str = "data/creatures"
    fingerprint: str = "f" * 16
    base_weights_hash: str = "b" * 16
    learning_rate: float = 3e-4
    steps: int = 160
    code: str = "c" * 16
    model: Mapping[str, object] = dataclasses.field(default_factory=dict)


class StoreMaker:
    """Collects runs and writes them in one go."""

    def __init__(self, pipeline: str = PIPELINE, folder: str = "/pipeline") -> None:
        self.pipeline, self.folder = pipeline, folder
        self.artifacts: list[tuple[str, mlmd.Artifact]] = []
        self.executions: list[tuple[str, mlmd.Execution, tuple[int, int]]] = []
        self.contexts: dict[tuple[str, str], list[int]] = {}
        self.events: list[tuple[int, int, int, str, int]] = []
        self.cache: dict[str, dict[str, list[Made]]] = {}
        self.version = 0

    def artifact(self, kind: str, uri: str = "", **properties: object) -> Made:
        made = mlmd.Artifact(uri=uri, state=mlmd.Artifact.LIVE)
        _set(made.custom_properties, properties)
        self.artifacts.append((kind, made))
        return Made(len(self.artifacts) - 1)

    def execution(
        self,
        run: str,
        node: str,
        state: int = COMPLETE,
        settings: Mapping[str, object] | None = None,
        inputs: Mapping[str, Sequence[Made]] | None = None,
        outputs: Mapping[str, Sequence[Made]] | None = None,
        at: int = FIRST_DAY,
        seconds: float = 1.0,
        cache_key: str | None = None,
    ) -> int:
        made = mlmd.Execution(last_known_state=state)
        _set(made.custom_properties, settings or {})
        self.executions.append((_CLASSES.get(node, node), made, (at, at + round(seconds * 1000))))
        place = len(self.executions) - 1
        for kind, name in (
            ("pipeline", self.pipeline),
            ("pipeline_run", run),
            ("node", f"{self.pipeline}.{node}"),
            *([("execution_cache", cache_key)] if cache_key else []),
        ):
            self.contexts.setdefault((kind, name), []).append(place)
        resolver = node == "LatestBlessedModel"
        for artifacts, event in (
            (inputs or {}, mlmd.Event.INPUT),
            (outputs or {}, mlmd.Event.INTERNAL_OUTPUT if resolver else mlmd.Event.OUTPUT),
        ):
            for key, several in artifacts.items():
                for index, artifact in enumerate(several):
                    self.events.append((place, artifact.place, event, key, index))
        return place + 1

    def step(
        self,
        run: str,
        node: str,
        at: int,
        settings: Mapping[str, object],
        inputs: Mapping[str, Sequence[Made]],
        make: Mapping[str, Sequence[tuple[str, Mapping[str, object]]]],
        seconds: float,
    ) -> dict[str, list[Made]]:
        """A step that takes its outputs from the cache where it has run like this before."""
        identity = repr((node, sorted(settings.items()), sorted(inputs.items())))
        key = hashlib.sha256(identity.encode()).hexdigest()
        cached = self.cache.get(key)
        if cached is None:
            number = len(self.executions) + 1
            outputs = {
                name: [
                    self.artifact(kind, f"{self.folder}/{node}/{name}/{number}", **properties)
                    for kind, properties in kinds
                ]
                for name, kinds in make.items()
            }
            self.cache[key] = outputs
            self.execution(run, node, COMPLETE, settings, inputs, outputs, at, seconds, key)
            return outputs
        self.execution(run, node, CACHED, settings, inputs, cached, at, 0.05, key)
        return cached

    def run(
        self,
        name: str,
        settings: Settings = Settings(),
        at: int = FIRST_DAY,
        baseline: Sequence[Made] = (),
        started: Sequence[Made] = (),
        loss: float = 0.16,
        blessed: bool = True,
        stop: tuple[str, int, str] | None = None,
        samples: int = 0,
        scores_seed: int = 0,
    ) -> dict[str, list[Made]]:
        """A run of a pipeline like ours; `stop` is (node, state, error) of the last step."""
        code = {"code_version": settings.code}
        everything: dict[str, list[Made]] = {}

        def step(node, properties, inputs, make, seconds):
            nonlocal at
            if stop is not None and stop[0] == node:
                extra = {"failure_reason": stop[2]} if stop[2] else {}
                self.execution(name, node, stop[1], {**properties, **extra}, inputs, {}, at)
                raise StopIteration
            everything.update(self.step(name, node, at, properties, inputs, make, seconds))
            at += round(seconds * 1000) + 500

        with contextlib.suppress(StopIteration):
            step(
                "CaptionExampleGen",
                {
                    "dataset": settings.dataset,
                    "dataset_fingerprint": settings.fingerprint,
                    "eval_fraction": 0.1,
                    **code,
                },
                {},
                {
                    "examples": [
                        ("Examples", {"split_names": '["train", "eval"]', "num_train": 648})
                    ],
                    "rejects": [
                        (
                            "components.RejectedRows",
                            {"rejected_total": 3, "rejected_empty_caption": 3},
                        )
                    ],
                },
                4.0,
            )
            examples = {"examples": everything["examples"]}
            step("StatisticsGen", {}, examples, {"statistics": [("ExampleStatistics", {})]}, 6.0)
            statistics = {"statistics": everything["statistics"]}
            step("SchemaGen", {}, statistics, {"schema": [("Schema", {})]}, 0.3)
            step(
                "CaptionValidator",
                {"fail_on_anomalies": 0, **code},
                {**statistics, "schema": everything["schema"]},
                {"anomalies": [("ExampleAnomalies", {"num_anomalies": 0})]},
                0.4,
            )
            step(
                "LatentGen",
                {"preset": "tiny", "base_weights": "shipped", **code},
                examples,
                {
                    "latents": [
                        (
                            "Examples",
                            {"encoders_hash": settings.base_weights_hash, "num_train": 648},
                        )
                    ]
                },
                9.0,
            )
            latents = {"latents": everything["latents"]}
            step(
                "Trainer",
                {
                    "custom_config": json.dumps(
                        {
                            "preset": "tiny",
                            "base_weights": "shipped",
                            "base_weights_hash": settings.base_weights_hash,
                            "training": {
                                "learning_rate": settings.learning_rate,
                                "steps": settings.steps,
                            },
                            "validation": {"prompts": ["a dragon"]},
                            "code_version": settings.code,
                        }
                    )
                },
                {"examples": everything["latents"], **({"base_model": started} if started else {})},
                {"model": [("Model", settings.model)], "model_run": [("ModelRun", {})]},
                120.0,
            )
            model = {"model": everything["model"]}
            # The latest blessed model before the candidate is another one.
            baseline = [made for made in baseline if made not in everything["model"]]
            self.execution(
                name,
                "LatestBlessedModel",
                COMPLETE,
                {},
                {},
                {"candidate": everything["model"], "model": baseline},
                at,
                0.1,
            )
            compared = {"baseline_model": baseline} if baseline else {}
            step(
                "LossScorer",
                {"seed": scores_seed, **code},
                {**model, **latents, **compared},
                {
                    "scores": [
                        (
                            "Examples",
                            {
                                "loss": loss,
                                "loss_baseline": 0.2,
                                "loss_delta": loss - 0.2,
                                "baseline": "model 1" if baseline else "base weights",
                            },
                        )
                    ]
                },
                11.0,
            )
            scores = everything["scores"]
            step(
                "Evaluator",
                {"eval_config": "{}"},
                {"examples": scores, **model},
                {
                    "evaluation": [("ModelEvaluation", {})],
                    "blessing": [
                        (
                            "ModelBlessing",
                            {
                                "blessed": int(blessed),
                                "current_model_id": everything["model"][0].id,
                            },
                        )
                    ],
                    "samples": [("components.Sample", {"seed": i}) for i in range(samples)],
                },
                5.0,
            )
            self.version += blessed
            step(
                "ServingPusher",
                {"push_destination": f"{self.folder}/serving_model", **code},
                {**model, "model_blessing": everything["blessing"], "scores": scores},
                {
                    "pushed_model": [
                        (
                            "PushedModel",
                            {
                                "pushed": 1,
                                "pushed_destination": f"{self.folder}/serving_model",
                                "pushed_version": str(self.version),
                            }
                            if blessed
                            else {"pushed": 0, "reason": "the model is not blessed"},
                        )
                    ]
                },
                8.0,
            )
        return everything

    def save(self, path: str | Path) -> None:
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        executions = self.write(metadata_store.MetadataStore(config))
        # The client writes the moment of the call; a run takes longer than that.
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.executemany(
                "UPDATE Execution SET create_time_since_epoch = ?, last_update_time_since_epoch = ?"
                " WHERE id = ?",
                [(*times, i) for i, (_, _, times) in zip(executions, self.executions, strict=True)],
            )

    def write(self, store: metadata_store.MetadataStore) -> list[int]:
        """Writes everything to a store; returns the ids of the executions."""
        kinds = {k: store.put_artifact_type(mlmd.ArtifactType(name=k)) for k, _ in self.artifacts}
        for kind, artifact in self.artifacts:
            artifact.type_id = kinds[kind]
        classes = {
            c: store.put_execution_type(mlmd.ExecutionType(name=c)) for c, _, _ in self.executions
        }
        for name, execution, _ in self.executions:
            execution.type_id = classes[name]
        context_types = {
            kind: store.put_context_type(mlmd.ContextType(name=kind)) for kind, _ in self.contexts
        }
        artifacts = store.put_artifacts([a for _, a in self.artifacts])
        executions = store.put_executions([e for _, e, _ in self.executions])
        contexts = store.put_contexts(
            [mlmd.Context(name=n, type_id=context_types[k]) for k, n in self.contexts]
        )
        ids = dict(zip(self.contexts, contexts, strict=True))
        store.put_attributions_and_associations(
            [],
            [
                mlmd.Association(context_id=ids[context], execution_id=executions[place])
                for context, places in self.contexts.items()
                for place in places
            ],
        )
        parent = ids.get(("pipeline", self.pipeline))
        store.put_parent_contexts(
            [
                mlmd.ParentContext(child_id=i, parent_id=parent)
                for (kind, _), i in ids.items()
                if kind == "pipeline_run"
            ]
        )
        events = []
        for execution, artifact, kind, key, index in self.events:
            event = mlmd.Event(
                execution_id=executions[execution], artifact_id=artifacts[artifact], type=kind
            )
            event.path.steps.add().key = key
            event.path.steps.add().index = index
            events.append(event)
        store.put_events(events)
        return list(executions)


def make_thousand(path: str | Path, runs: int = 1000) -> StoreMaker:
    """A store of `runs` runs: new data every 50th, failures, refusals, a run that still runs."""
    maker = StoreMaker()
    baseline: list[Made] = []
    for number in range(runs):
        data = number // 50
        settings = Settings(
            fingerprint=f"{data:016x}",
            dataset=f"data/batch-{data}",
            learning_rate=1e-4 * (1 + number % 7),
            steps=100 + number,
            code=f"{number // 200:016x}",
        )
        stop = None
        if number == runs - 1:
            stop = ("Trainer", RUNNING, "")
        elif number % 17 == 16:
            stop = ("LossScorer", FAILED, "ResourceExhaustedError: out of memory")
        made = maker.run(
            f"run {number:04}",
            settings,
            FIRST_DAY + number * 7 * MINUTE,
            baseline,
            loss=0.2 - 0.05 * (number % 13) / 13,
            blessed=number % 3 != 2,
            stop=stop,
            samples=24,
        )
        if stop is None and number % 3 != 2:
            baseline = made["model"]
    maker.save(path)
    return maker


def run_facts(runs: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Status and releases of each run of `make_thousand`."""
    facts, version = {}, 0
    for number in range(runs):
        status, releases = "succeeded", ()
        if number == runs - 1:
            status = "running"
        elif number % 17 == 16:
            status = "failed"
        elif number % 3 != 2:
            version += 1
            releases = (str(version),)
        facts[f"run {number:04}"] = (status, releases)
    return facts


def _set(target, properties: Mapping[str, object]) -> None:
    for name, value in properties.items():
        if isinstance(value, int):
            target[name].int_value = value
        elif isinstance(value, float):
            target[name].double_value = value
        else:
            target[name].string_value = str(value)


if __name__ == "__main__":
    make_thousand(sys.argv[1], *map(int, sys.argv[2:]))
