"""What was withdrawn, who knows it, and whether the new model does -> a page to hand on."""

from components.withdrawn_report.component import WithdrawnReport

__all__ = ["WithdrawnReport"]
