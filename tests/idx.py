"""IDX pairs on the disk, written by the format's own description (yann.lecun.com/exdb/mnist), not by our reader."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as an IDX file: magic 0 0 8 dimensions, each size as a big-endian int32, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, gz: bool = True) -> Path:
    """Write the pair of `images` (N, H, W) and `labels` (N,); the path of the images' file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("t-labels-idx1-ubyte", labels), ("t-images-idx3-ubyte", images)):
        content = idx_bytes(array)
        path = folder / (f"{name}.gz" if gz else name)
        path.write_bytes(gzip.compress(content, mtime=0) if gz else content)
    return path


def pictures(rows: int, height: int = 6, width: int = 5, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) drawn at random; every class occurs early."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (rows, height, width), dtype=np.uint8)
    return images, (np.arange(rows) % classes).astype(np.uint8)
