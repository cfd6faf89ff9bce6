"""Workloads: tasks, networks and recipes. torch and numpy; no ray, no mlflow.

Every import inside this package is relative, because the package also travels inside each registered model under a name of its
own (pipelines/tracking/registry.py), and two versions of it must be able to stand side by side in one process.
torch is imported where it is used, so that a mistake in a recipe is reported before torch is loaded.
"""
