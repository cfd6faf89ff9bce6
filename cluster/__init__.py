"""Where a run goes. Knows Ray; knows nothing of models or metrics: what is to be run comes in as a function."""


class ClusterError(Exception):
    """The cluster cannot be reached, or can never do what is asked; the message says the arithmetic."""
