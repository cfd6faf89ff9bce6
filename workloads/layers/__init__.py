"""torch modules that the networks are built of. Imported only when a network is built, because they import torch."""
