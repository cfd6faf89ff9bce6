"""Tests of workloads/."""
