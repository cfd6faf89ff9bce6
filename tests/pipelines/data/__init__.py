"""Tests of pipelines/data/."""
