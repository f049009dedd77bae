"""A small network with a residual sum and one with heads, samples for them, and ground to stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from net import Net

from deploy.compress.ground import Ground
from deploy.data.dataset import Dataset, open_dataset
from deploy.graph.summary import tensor_specs


def _residual(seed: int = 0) -> ir.Model:
    """conv 8, block of conv 12 and conv 8 with a sum, conv 16, ten classes; batch norms."""
    n = Net(seed)
    x = n.cbr(n.input("n", 3, 8, 8), 8)
    y = n.bn(n.conv(n.cbr(x, 12), 8, bias=False))
    return n.model(n.head(n.cbr(n.relu(n.add(x, y)), 16, 3, 2)))


def _samples(model: ir.Model, count: int = 64, *, labels: bool = False) -> Dataset:
    draw = np.random.default_rng(1)
    arrays = {
        v.name or "": draw.standard_normal(
            [d if isinstance(d, int) else count for d in v.shape or ()]
        ).astype(np.float32)
        for v in model.graph.inputs
    }
    if labels:
        arrays["y"] = draw.integers(0, 10, count)
    return open_dataset(arrays, tensor_specs(model.graph.inputs))


@pytest.fixture(scope="session")
def network() -> ir.Model:
    return _residual()


@pytest.fixture
def ground(tmp_path: Path) -> Callable[..., Ground]:
    def make(model: ir.Model, **given: object) -> Ground:
        settings: dict[str, object] = {"samples": _samples(model), "given": model, "workdir": tmp_path}
        return Ground(**{**settings, **given})

    return make


@pytest.fixture(scope="session")
def samples() -> Callable[..., Dataset]:
    """Random inputs for a graph, with random labels on wish."""
    return _samples
