"""A schema file of the user's -> Schema."""

from components.pinned_schema_gen.component import PinnedSchemaGen

__all__ = ["PinnedSchemaGen"]
