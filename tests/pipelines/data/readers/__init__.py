"""Tests of pipelines/data/readers/."""
