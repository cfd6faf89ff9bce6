"""Tasks, one file each, and what several share; a network inherits from exactly one task."""
