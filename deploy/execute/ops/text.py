"""Text, which torch has not: numpy arrays of objects go in and out."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()


def _text(word: object) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def _words(x: np.ndarray) -> list[str]:
    return [_text(word) for word in x.ravel()]


@ops.kernel("StringConcat")
def concat(_: Node) -> Kernel:
    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        joined = np.vectorize(lambda a, b: _text(a) + _text(b), otypes=[object])
        return np.asarray(joined(x, y), dtype=object)

    return run


@ops.kernel("StringNormalizer")
def normalise(node: Node) -> Kernel:
    stop = set(node.ir.attributes.get_strings("stopwords") or ())
    exact = node.flag("is_case_sensitive")
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(node.string("case_change_action", "NONE"), str)
    refused = stop if exact else {word.lower() for word in stop}

    def run(x: np.ndarray) -> np.ndarray:
        kept = [change(w) for w in _words(x) if (w if exact else w.lower()) not in refused] or [""]
        return np.array(kept, object).reshape((1, -1) if x.ndim == 2 else (-1,))

    return run


@ops.kernel("StringSplit")
def split(node: Node) -> Kernel:
    delimiter, limit = node.string("delimiter") or None, node.integer("maxsplit", -1)

    def run(x: np.ndarray) -> tuple[np.ndarray, Tensor]:
        parts = [word.split(delimiter, limit) if word or delimiter is None else [""] for word in _words(x)]
        counts = torch.tensor([len(part) for part in parts], dtype=torch.int64).reshape(x.shape)
        longest = max(map(len, parts), default=0)
        filled = [part + [""] * (longest - len(part)) for part in parts]
        return np.array(filled, object).reshape(*x.shape, longest), counts

    return run


@ops.kernel("RegexFullMatch")
def full_match(node: Node) -> Kernel:
    try:
        pattern = re.compile(node.string("pattern"))
    except re.error as e:
        raise node.unsupported(f"Python cannot read its pattern: {e}") from e

    def run(x: np.ndarray) -> Tensor:
        found = [pattern.fullmatch(word) is not None for word in _words(x)]
        return torch.tensor(found, dtype=torch.bool).reshape(x.shape)

    return run
