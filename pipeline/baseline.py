"""Which model a newly trained one is compared with, in local runs."""

from __future__ import annotations

import ml_metadata as mlmd
from tfx import types
from tfx.dsl.components.common import resolver

from components.diffusion_trainer.executor import TRAINING_ID

CANDIDATE = "candidate"
MODEL = "model"
BLESSING = "model_blessing"


class LatestBlessedBeforeCandidate(resolver.ResolverStrategy):
    """The latest blessed model that is older than the candidate, or none.

    TFX's own `LatestBlessedModelStrategy` depends on when it runs: once a candidate is blessed, a
    second run finds that candidate itself, and executes everything after the resolver again
    although nothing has changed. Here a candidate always has the same baseline. Another export of
    the candidate's training, such as one made after drawing other prompts, is the candidate itself
    and not a baseline.

    Inputs: `candidate` (the model that was just trained), `model` and `model_blessing` (channels
    with every artifact of that type).
    """

    def resolve_artifacts(
        self, store: mlmd.MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Reduces `model` and `model_blessing` to the baseline and its blessing; see the class."""
        [candidate] = input_dict[CANDIDATE]
        blessings = {
            blessing.get_int_custom_property("current_model_id"): blessing
            for blessing in input_dict[BLESSING]
            if blessing.get_int_custom_property("blessed") == 1
        }
        training = candidate.get_string_custom_property(TRAINING_ID)
        older = [
            m
            for m in input_dict[MODEL]
            if m.id < candidate.id
            and m.id in blessings
            and not (training and m.get_string_custom_property(TRAINING_ID) == training)
        ]
        baseline = sorted(older, key=lambda model: model.id)[-1:]
        return {
            CANDIDATE: [candidate],
            MODEL: baseline,
            BLESSING: [blessings[model.id] for model in baseline],
        }
