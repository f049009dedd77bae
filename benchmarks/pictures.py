"""The CIFAR-10 images beside the cases, which lie there as JPEG bytes, as a network of theirs reads them."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(archive: Path, card: Path, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` images, (n, 3, 32, 32), and their classes.

    ``archive`` is an npz of ``jpeg`` (all bytes behind each other), ``offsets`` and ``y``; the case's
    ``card`` says how pixels are normalised.
    """
    rule = json.loads(card.read_text())["normalization"]
    scale, mean, deviation = (np.array(rule[name], np.float32) for name in ("scale", "mean", "std"))
    with np.load(archive) as stored:
        jpeg, labels = stored["jpeg"].tobytes(), stored["y"][:count].astype(np.int64)
        offsets = stored["offsets"][: len(labels) + 1]
    pixels = [np.asarray(Image.open(io.BytesIO(jpeg[start:end]))) for start, end in pairwise(offsets)]
    found = np.empty((len(labels), 3, 32, 32), np.float32)
    for place, picture in zip(found, pixels, strict=True):
        place[...] = ((picture * scale - mean) / deviation).transpose(2, 0, 1)
    return found, labels
