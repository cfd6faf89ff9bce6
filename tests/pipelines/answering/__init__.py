"""Tests of pipelines/answering."""
