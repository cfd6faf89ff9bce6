"""The exact loop and what it stands on: the optimizer, the sum over workers, the checkpoint, and the worker that joins them."""
