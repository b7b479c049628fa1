"""Statistics and schema -> anomalies, which stop the run if the user wants that."""

from components.caption_validator.component import CaptionValidator

__all__ = ["CaptionValidator"]
