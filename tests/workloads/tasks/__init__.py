"""Tests of workloads/tasks/."""
