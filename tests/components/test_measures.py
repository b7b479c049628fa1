"""The list of measures, and what holds for each that stands in it."""

from __future__ import annotations

import numpy as np
import pytest
from measured_pictures import CLIP, EVERYTHING, drawn, features_of

from components.evaluator import metrics
from components.measures import MEASURES, MeasureSettings, applying
from components.measures.clip import Clip, clip_scores
from components.measures.clip_score import ClipScore

BY_NAME = {measure.name: measure for measure in MEASURES}


def names(**settings) -> list[str]:
    return [measure.name for measure in applying(MeasureSettings(**settings))]


def test_a_measure_that_is_particular_to_some_datasets_is_taken_where_one_asks_for_it():
    assert "feature_distance" in names()
    assert "colour_agreement" not in names()
    asked = names(asked_for=("colour_agreement",))
    assert set(asked) - set(names()) == {"colour_agreement"}
    assert applying(EVERYTHING) == MEASURES


@pytest.mark.parametrize("name", ["colours", "feature_distance"])
def test_what_a_dataset_cannot_ask_for(name):
    with pytest.raises(
        ValueError, match=f"'{name}' is not a measure .* it can ask for .*colour_agreement"
    ):
        names(asked_for=(name,))


def test_clip_scores_are_taken_with_a_clip():
    assert set(names(clip_model=str(CLIP))) - set(names()) == {"clip_score"}
    clip, pictures = Clip(str(CLIP)), drawn()
    images = clip.image_embeddings(pictures.pictures)
    expected = clip_scores(images, clip.text_embeddings(pictures.tokens))
    assert ClipScore().load(EVERYTHING)(pictures) == expected.tolist()


def test_no_two_measures_share_a_name():
    everywhere = [name for m in MEASURES for name in (m.name, m.baseline_name)]
    assert len(set(everywhere)) == len(everywhere)
    features = [name for measure in MEASURES for name in features_of(measure)]
    assert len(set(features)) == len(features)


@pytest.mark.parametrize("name", BY_NAME)
def test_metrics_are_made_of_what_the_rows_have(name):
    measure = BY_NAME[name]
    features = features_of(measure)
    assert all(np.isfinite(values).all() for values in features.values())
    called = []
    for spec in measure.metrics():
        metric = getattr(metrics, spec.class_name)(**spec.arguments)
        [computation] = metric.computations()
        [key] = computation.keys
        called.append(key.name)
        wanted = {spec.arguments[n] for n in ("feature", "reference") if n in spec.arguments}
        assert wanted <= features.keys()
    assert called == [measure.name, measure.baseline_name]


@pytest.mark.parametrize("name", BY_NAME)
def test_people_can_read_it(name):
    measure = BY_NAME[name]
    assert measure.label
    assert measure.format.format(0.5)
