"""Tests of pipelines/tracking/ that need no MLflow."""
