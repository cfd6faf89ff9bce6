"""Everything about Ray, and nothing of models or metrics: the work comes in as a function."""


class ClusterError(Exception):
    """The cluster cannot be reached, or can never do what is asked; the message says the arithmetic."""
