"""What was withdrawn, and which releases and whether the new model know it -> a page to share."""

from components.withdrawn_report.component import WithdrawnReport

__all__ = ["WithdrawnReport"]
