"""What the metrics of runs are, and whether more of them is better."""

from __future__ import annotations

from collections.abc import Iterable

_OF_BASELINE = "_baseline"
_NOTES = {
    "loss": "held-out loss, the mean squared error of the predicted noise; lower is better",
    "loss_baseline": "the loss of what the model was compared with, on the same pictures",
    "loss_delta": "loss minus loss_baseline; lower is better, below 0 it is an improvement",
    "loss_increase_upper": "the upper end of the interval of loss_delta, as a fraction of "
    "loss_baseline; lower is better",
    "example_count": "losses that were computed",
    "clip_score": "how well CLIP finds that pictures fit their captions; higher is better",
    "colour_agreement": "drawn pictures with the colours of their captions; higher is better",
    "shape_agreement": "drawn pictures with the shapes of their captions; higher is better",
    "eyes_agreement": "drawn pictures with the eyes of their captions; higher is better",
    "feature_agreement": "drawn pictures with the features of their captions; higher is better",
    "feature_distance": "distance of drawn pictures from held-out ones; lower is better",
    "class_distance": "how far pictures of a subject's class have moved; lower is better",
    "memorization_gap": "how much lower the loss on training pictures is than the held-out one, "
    "as a fraction; lower is better",
    "memorization_gap_added": "the part of memorization_gap that training added; lower is better",
    "copies": "fraction of drawn pictures that are suspected copies; lower is better",
    "nearness": "distance of drawn pictures to the nearest training picture, as a fraction of that "
    "to the next ones; higher is better",
    "nearness_held_out": "nearness of held-out pictures, to compare with",
    "train_loss": "loss on training pictures",
    "text_part": "part of a prediction that held-out captions decide",
    "train_text_part": "part of a prediction that training captions decide",
    "text_part_excess": "how much train_text_part is above text_part, as a fraction; "
    "lower is better",
}


def metric_notes(names: Iterable[str]) -> dict[str, str]:
    """What each of these metrics is; those that are unknown here are left out."""
    return {name: note for name in names if (note := _note(name))}


def _note(name: str) -> str:
    if name in _NOTES or not name.endswith(_OF_BASELINE):
        return _NOTES.get(name, "")
    own = name.removesuffix(_OF_BASELINE)
    return f"{own} of what the model was compared with" if own in _NOTES else ""
