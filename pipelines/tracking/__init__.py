"""What is remembered of a run: the journal first, on disk; MLflow after it, from the journal."""
