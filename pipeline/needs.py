"""Which artifacts of an output folder are still needed, according to its ML Metadata.

These are needed: all existing releases, the blessed models, the latest model, the inputs and
outputs of the newest runs, and the ancestors of all of these, i.e. what they were made from. The
baseline that the evaluation compared a model with is not an ancestor. If the training of a model
started from another model, that model is needed, but not what it was made from.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from serving.releases import RELEASES

MODEL, EXAMPLES = "Model", "Examples"
_PUSHED, _BLESSING = "PushedModel", "ModelBlessing"
_RUN = "pipeline_run"
_SUCCESSFUL = (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED)
_OUTPUTS = (mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT)
_INPUTS = (mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT)
_COMPARED = "baseline"
# The input of Trainer and Tuner that training starts from.
_STARTED = "base_model"
_NEWEST = "the newest runs"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What stays although no release needs it.

    Attributes:
        keep_runs: How many of the newest successful runs keep all their artifacts, at least 1; the
            latest run keeps its artifacts, too, however it ended.
        keep_blessed: Whether blessed models stay when their release is gone and a later model was
            blessed.
        keep_checkpoints: Whether finished trainings keep their checkpoints for as long as their
            models stay.
    """

    keep_runs: int = 1
    keep_blessed: bool = True
    keep_checkpoints: bool = False


class History:
    """What a store records about runs, steps and artifacts.

    Attributes:
        artifacts: All artifacts, by id.
        training_began: When the latest successful training began, in seconds since 1970; 0 if there
            is none.
        ended_badly: Whether the latest run did not finish.
    """

    def __init__(self, store: metadata_store.MetadataStore) -> None:
        """Reads `store`."""
        self.artifacts: Mapping[int, mlmd.Artifact] = {a.id: a for a in store.get_artifacts()}
        self._steps = {e.id: e for e in store.get_executions()}
        self._taken: dict[int, set[int]] = collections.defaultdict(set)
        self._compared: dict[int, set[int]] = collections.defaultdict(set)
        self._started: dict[int, set[int]] = collections.defaultdict(set)
        self._left: dict[int, set[int]] = collections.defaultdict(set)
        self.maker: dict[int, int] = {}
        events = store.get_events_by_execution_ids(list(self._steps)) if self._steps else []
        for event in events:
            step, artifact = event.execution_id, event.artifact_id
            if event.type in _INPUTS:
                compared = any(s.key.startswith(_COMPARED) for s in event.path.steps)
                (self._compared if compared else self._taken)[step].add(artifact)
                if any(s.key == _STARTED for s in event.path.steps):
                    self._started[step].add(artifact)
            elif event.type in _OUTPUTS:
                self._left[step].add(artifact)
                if self._steps[step].last_known_state == mlmd.Execution.COMPLETE:
                    self.maker[artifact] = step
        # The newest run last.
        self._runs = sorted(
            (
                sorted(e.id for e in store.get_executions_by_context(context.id))
                for context in store.get_contexts_by_type(_RUN)
            ),
            key=lambda steps: steps[-1:],
        )
        self.ended_badly = bool(self._runs) and not self._ended_well(self._runs[-1])
        made = [self._steps[s] for a, s in self.maker.items() if self.artifacts[a].type == MODEL]
        self.training_began = max((e.create_time_since_epoch for e in made), default=0) / 1000

    def needed(self, serving_dir: str, policy: Policy) -> dict[int, str]:
        """The artifacts that are needed, each with what needs it.

        Args:
            serving_dir: The directory that local runs push to.
            policy: What else stays.
        """
        needed: dict[int, str] = {}
        for artifact_id, reason in self._roots(serving_dir, policy):
            for one in (artifact_id, *self._ancestors(artifact_id)):
                needed.setdefault(one, reason)
        for step in self._kept_steps(policy.keep_runs):
            for artifact_id in (*self._taken[step], *self._compared[step]):
                needed.setdefault(artifact_id, _NEWEST)
        return needed

    def blessed(self) -> set[int]:
        """Ids of the models that the evaluation blessed."""
        return {
            properties["current_model_id"].int_value
            for a in self.artifacts.values()
            if a.type == _BLESSING
            and (properties := dict(a.custom_properties)).get("blessed", mlmd.Value()).int_value
            and "current_model_id" in properties
        }

    def _roots(self, serving_dir: str, policy: Policy) -> Iterator[tuple[int, str]]:
        for artifact in self.artifacts.values():
            version = _release_of(artifact, serving_dir)
            if version:
                yield artifact.id, f"release {version}"
        models = sorted(
            a.id
            for a in self.artifacts.values()
            if a.type == MODEL and a.state == mlmd.Artifact.LIVE and a.id in self.maker
        )
        blessed = self.blessed().intersection(models)
        for model in sorted(blessed) if policy.keep_blessed else sorted(blessed)[-1:]:
            yield model, "a blessed model"
        for model in models[-1:]:
            yield model, "the latest model"
        for step in self._kept_steps(policy.keep_runs):
            for artifact_id in self._left[step]:
                yield artifact_id, _NEWEST

    def _kept_steps(self, number: int) -> Iterator[int]:
        well = [steps for steps in self._runs if self._ended_well(steps)]
        for steps in (*well[-max(1, number) :], *self._runs[-1:]):
            yield from steps

    def _ended_well(self, steps: Iterable[int]) -> bool:
        """Whether a run finished, i.e. reached the pusher, and not just the end of a step."""
        steps = list(steps)
        return all(self._steps[s].last_known_state in _SUCCESSFUL for s in steps) and any(
            self.artifacts[a].type == _PUSHED for s in steps for a in self._left[s]
        )

    def _ancestors(self, artifact_id: int) -> Iterator[int]:
        """What an artifact was made from, directly and indirectly."""
        seen, waiting = {artifact_id}, [artifact_id]
        while waiting:
            step = self.maker.get(waiting.pop())
            if step is None:
                continue
            for taken in self._taken[step] - seen:
                seen.add(taken)
                yield taken
                if taken not in self._started[step]:
                    waiting.append(taken)


def _release_of(artifact: mlmd.Artifact, serving_dir: str) -> str:
    """The release that an artifact stands for, as far as is known here; "" if there is none.

    A release that was pushed elsewhere counts, and so does every release if the serving directory
    is missing: its disk may just not be mounted. A damaged release counts, too.
    """
    properties = dict(artifact.custom_properties)
    version = properties.get("pushed_version", mlmd.Value()).string_value
    if artifact.type != _PUSHED or not version:
        return ""
    destination = properties.get("pushed_destination", mlmd.Value()).string_value or serving_dir
    here = os.path.realpath(destination) == os.path.realpath(serving_dir)
    if not here or not os.path.isdir(serving_dir):
        return version
    return version if os.path.isfile(os.path.join(serving_dir, RELEASES, f"{version}.json")) else ""
