"""Feeds that fit an artifact's inputs, looked at closely once."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.adapter.feeds import Feeding
from deploy.errors import DataError
from deploy.spec.tensors import TensorSpec

INPUTS = (
    TensorSpec(name="x", dtype="float32", shape=("N", 3)),
    TensorSpec(name="n", dtype="int64", shape=()),
)


def fed(rows: int = 1, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 3), dtype), "n": np.zeros((), np.int64)}


def test_feeds_are_alike_by_names_types_and_shapes():
    feeding = Feeding(INPUTS)
    assert not feeding.like_the_last(fed())
    feeding.require_fit(fed())
    assert feeding.like_the_last(dict(reversed(fed().items())))
    others = (fed(2), fed(dtype=np.float64), {"x": fed()["x"]}, {**fed(), "q": fed()["x"]}, {})
    assert not any(feeding.like_the_last(other) for other in others)


@pytest.mark.parametrize("wrong", [fed(dtype=np.float64), {"x": fed()["x"]}, {}, {**fed(), "q": fed()["x"]}])
def test_what_does_not_fit_is_refused_after_what_fitted(wrong):
    feeding = Feeding(INPUTS)
    with pytest.raises(DataError):
        feeding.require_fit(wrong)
    feeding.require_fit(fed())
    feeding.require_fit(fed(2))
    with pytest.raises(DataError):
        feeding.require_fit(wrong)
    feeding.require_fit(fed(2))


def test_a_model_without_inputs_takes_nothing():
    feeding = Feeding(())
    feeding.require_fit({})
    assert feeding.like_the_last({})
    with pytest.raises(DataError, match="no input 'x'"):
        feeding.require_fit({"x": fed()["x"]})
