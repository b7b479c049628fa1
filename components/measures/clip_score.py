"""How well does a picture fit its caption, according to CLIP?"""

from __future__ import annotations

from components.measures.measure import Drawn, MeanMeasure, MeasureSettings, Measuring


class ClipScore(MeanMeasure):
    """See `components.measures.clip.clip_scores`."""

    name = "clip_score"
    label = "CLIP score"
    format = "{:.1f}"
    possible = (0.0, 100.0)

    def applies(self, settings: MeasureSettings) -> bool:
        """Whether a CLIP is given."""
        return bool(settings.clip_model)

    def load(self, settings: MeasureSettings) -> Measuring:
        """See `Measure`; raises a `WeightsError` if the CLIP cannot be loaded."""
        # Imports TensorFlow.
        from components.measures.clip import Clip, clip_scores

        clip = Clip(settings.clip_model)

        def scores(drawn: Drawn) -> list[float]:
            images = clip.image_embeddings(drawn.pictures)
            return [float(s) for s in clip_scores(images, clip.text_embeddings(drawn.tokens))]

        return scores
