"""What is wrong with a cluster, as one sentence."""


class ClusterError(Exception):
    """The cluster cannot be reached, or can never do what is asked; the message says the arithmetic."""
