"""Tests of pipelines/judging."""
