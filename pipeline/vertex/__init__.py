"""What a run on Vertex AI needs beyond the pipeline itself: compile, submit, emulate."""
