"""Whether arrays fit the inputs of an artifact, said alike by every backend."""

from __future__ import annotations

from collections.abc import Sequence

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
