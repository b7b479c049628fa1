"""What a run on Vertex AI needs besides the pipeline itself: compile, submit, emulate."""
