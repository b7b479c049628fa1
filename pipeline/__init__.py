"""The pipeline: its configuration, how it is built and how it is run."""
