"""Tests of pipelines/training/."""
