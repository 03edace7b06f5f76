"""Fashion-MNIST as Debian's package dataset-fashion-mnist installs it: read at training only, checked by SHA-256.

60,000 training and 10,000 test pictures of 28 x 28 greys in ten classes (Xiao, Rasul & Vollgraf 2017, arXiv
1708.07747), MIT licence, (c) 2017 Zalando SE. The sums are those of the authors' own four files.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {  # part -> (images, their SHA-256, labels, their SHA-256)
    "train": (
        "train-images-idx3-ubyte.gz", "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz", "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
    "test": (
        "t10k-images-idx3-ubyte.gz", "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz", "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
}  # fmt: skip
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def read(part: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """(N, 28, 28) uint8 pictures and (N,) int64 labels of "train" or "test".

    Raises RuntimeError where a file is missing or is not the one that the model card names.
    """
    images, image_sum, labels, label_sum = FILES[part]
    pixels = _checked(folder / images, image_sum)[16:].reshape(-1, 28, 28)
    return pixels, _checked(folder / labels, label_sum)[8:].astype(np.int64)


def padded(pixels: np.ndarray) -> np.ndarray:
    """(N, 1, 32, 32) float32 in [-1, 1] of (N, 28, 28) uint8: two pixels of black on every side."""
    wide = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    return wide[:, None].astype(np.float32) / 127.5 - 1


def _checked(file: Path, expected: str) -> np.ndarray:
    if not file.is_file():
        raise RuntimeError(f"{file} is missing: apt-get install dataset-fashion-mnist, or name its folder with --data")
    packed = file.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != expected:
        raise RuntimeError(f"{file} has SHA-256 {digest}, expected {expected}: not the data of the model card")
    return np.frombuffer(gzip.decompress(packed), np.uint8)
