"""Examples as a network takes them."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from workloads.cnn import CNN
from workloads.inference import tensors


def test_read_only_examples_become_tensors_without_a_warning_and_writable_ones_without_a_copy():
    read_only = np.arange(6, dtype=np.float32)
    read_only.flags.writeable = False
    writable = np.arange(6, dtype=np.float32)
    torch.set_warn_always(True)  # else torch warns of it once in a process only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batch = tensors(CNN(), {"read_only": read_only, "writable": writable})
    finally:
        torch.set_warn_always(False)
    batch["read_only"][0] = 7
    assert read_only[0] == 0
    assert np.shares_memory(batch["writable"].numpy(), writable)
    assert batch["writable"].tolist() == writable.tolist()
