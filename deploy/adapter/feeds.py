"""Whether arrays fit the inputs of an artifact, said alike by every backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.adapter.protocol import Arrays
from deploy.errors import DataError
from deploy.spec.tensors import TensorSpec


def require_fit(inputs: Sequence[TensorSpec], feeds: Arrays) -> None:
    """Raises DataError for an input that is missing, of another type or shape, or that nobody asked for."""
    for spec in inputs:
        if spec.name not in feeds:
            got = ", ".join(sorted(feeds)) or "nothing"
            raise DataError(f"input '{spec.name}' is missing (got {got})", hint=f"the model takes {spec}")
        array = feeds[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != spec.dtype:
            raise DataError(
                f"input '{spec.name}' is {array.dtype}{list(array.shape)}", hint=f"the model takes {spec}"
            )
    unknown = sorted(set(feeds) - {s.name for s in inputs})
    if unknown:
        raise DataError(
            f"the model has no input '{unknown[0]}'",
            hint="its inputs: " + ", ".join(str(s) for s in inputs),
        )


class Feeding:
    """Looks at feeds closely only where their types or shapes are not those of the last ones: a close look
    takes several microseconds, which is a tenth of a small network."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = inputs
        self._last: dict[str, tuple[np.dtype, tuple[int, ...]]] | None = None

    def require_fit(self, feeds: Arrays) -> None:
        """Raises DataError as `require_fit` does."""
        if not self.like_the_last(feeds):
            require_fit(self._inputs, feeds)
            self._last = {name: (array.dtype, array.shape) for name, array in feeds.items()}

    def like_the_last(self, feeds: Arrays) -> bool:
        """Whether they have the types and shapes of the last feeds that fitted."""
        if self._last is None or len(feeds) != len(self._last):
            return False
        for name, array in feeds.items():
            last = self._last.get(name)
            if last is None or array.shape != last[1] or array.dtype != last[0]:
                return False
        return True
