"""Whole builds of the small network, with whatever a test asks for besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.read import Bundle
from deploy.pipeline import build


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Callable[..., Bundle]:
    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "data": images, "out": tmp_path / "dist", "cache": tmp_path / "cache",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run
