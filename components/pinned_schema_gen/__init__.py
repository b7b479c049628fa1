"""The user's schema file -> Schema."""

from components.pinned_schema_gen.component import PinnedSchemaGen

__all__ = ["PinnedSchemaGen"]
