"""A trained model asked about many rows: what is read, what it answers, in which form and where the answers are kept."""
