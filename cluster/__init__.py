"""Where a run goes. Knows Ray; knows nothing of models or metrics: what is to be run comes in as a function."""
