"""Tests of the modules that networks share."""
