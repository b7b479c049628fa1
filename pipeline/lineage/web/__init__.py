"""The lineage browser: `make lineage`."""
