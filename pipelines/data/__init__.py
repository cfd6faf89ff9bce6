"""Prepared data: rows from sources, cut into splits, encoded, stored, and taken in the order of the steps."""
