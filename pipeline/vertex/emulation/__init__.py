"""Runs a compiled job on this machine as Vertex AI would."""
