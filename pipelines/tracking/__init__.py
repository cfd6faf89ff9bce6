"""Tracking of runs: the journal first, on disk; MLflow after it, from the journal."""
