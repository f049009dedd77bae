"""Small models as files, the example, and one bundle built once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.bundle.read import Bundle
from deploy.pipeline import build

NETWORK = """g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
    d = Add (c, b)
    e = Relu (d)
    f = GlobalAveragePool (e)
    h = Flatten (f)
    y = Gemm <transB = 1> (h, w3, b3)
}"""


def network_weights(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (4, 8), "b3": (4,)}
    return {n: (generator.standard_normal(s) / 4).astype(np.float32) for n, s in shapes.items()}


def save_model(path: Path, text: str, arrays: Mapping[str, np.ndarray], opset: int = 17) -> Path:
    """Write ONNX text, with ``arrays`` as initializers, to ``path``."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


@pytest.fixture(autouse=True)
def _loudness() -> Iterator[None]:
    """A command sets how much is said; the next test hears everything again."""
    logger = logging.getLogger("deploy")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What was measured on the machine that runs the tests changes none of them."""
    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session", autouse=True)
def _no_machine_measured() -> Iterator[None]:
    """Nor do the measurements that come with the package: they are true of some machines only, and builds
    without a clock choose by them. Tests that want some bring their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.stages.costs.measured_machines", list)
        yield


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_model


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network, 3x8x8 images to 4 classes, as an ONNX file."""
    return save_model(tmp_path_factory.mktemp("network") / "network.onnx", NETWORK, network_weights())


@pytest.fixture
def random_network(tmp_path: Path) -> Callable[[int], Path]:
    """The same network with other weights, by seed."""
    return lambda seed: save_model(tmp_path / "random.onnx", NETWORK, network_weights(seed))


@pytest.fixture(scope="session")
def images() -> dict[str, np.ndarray]:
    """Inputs for the network, without labels."""
    return {"x": np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="session")
def example() -> Path:
    """The folder of the handwritten digits."""
    return Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the builds of the example share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, network: Path, images: dict[str, np.ndarray]) -> Bundle:
    """The network as a bundle for x86-avx2; to be read only."""
    folder = tmp_path_factory.mktemp("built")
    return build(
        network, target="x86-avx2", data=images, measure=False, out=folder / "dist", cache=folder / "cache"
    )


@pytest.fixture
def bundle_copy(built: Bundle, tmp_path: Path) -> Path:
    """A copy of that bundle, to be damaged."""
    return Path(shutil.copytree(built.folder, tmp_path / "bundle"))
