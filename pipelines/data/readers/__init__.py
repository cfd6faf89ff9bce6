"""One file a format: how its rows are numbered and read."""
