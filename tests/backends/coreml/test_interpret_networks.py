"""Packages of coremltools' torch converter against PyTorch, and every form in which weights are stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_modules import NETWORKS, network

pytest.importorskip("coremltools")
from coreml_packages import evaluated, saved

from backends.coreml.package import open_package
from backends.coreml.sdk import quiet, sdk

FAST = ("resnet", "vit", "recurrent")
TRACED = ("recurrent", "text")
"""Of exported ones coremltools 9 cannot read an LSTM, and takes GELU's tanh form for the exact one."""


def converted(
    name: str, path: Path, *, half: bool = False, target: str = "iOS17"
) -> tuple[Path, dict[str, np.ndarray], list[np.ndarray]]:
    """The package of a module, what to feed it, and what PyTorch makes of that."""
    ct = sdk()
    module, x = network(name)
    with torch.no_grad(), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        wanted = module(x)
        if name in TRACED:
            dtype = np.int32 if x.dtype == torch.int32 else np.float32
            program, ends = torch.jit.trace(module, x), [ct.TensorType("x", x.shape, dtype)]
        else:
            program, ends = torch.export.export(module, (x,)).run_decompositions({}), None
        model = ct.convert(
            program,
            inputs=ends,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
        )
        model.save(str(path))
    (entry,) = model.get_spec().description.input
    outputs = wanted if isinstance(wanted, tuple) else (wanted,)
    return path, {entry.name: x.numpy()}, [one.numpy() for one in outputs]


def worst(got: Mapping[str, np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference, of numbers about 1 in size."""
    assert [one.shape for one in got.values()] == [one.shape for one in wanted]
    scale = [max(1.0, float(np.abs(one).max())) for one in wanted]
    pairs = zip(got.values(), wanted, scale, strict=True)
    return max(float(np.abs(have.astype(np.float64) - want).max()) / by for have, want, by in pairs)


@pytest.mark.parametrize("name", FAST)
def test_what_the_torch_converter_wrote_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    path, feeds, wanted = converted(name, tmp_path / "p.mlpackage")
    assert worst(evaluated(path, feeds), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("name", NETWORKS)
def test_twelve_architectures(name: str, target: str, tmp_path: Path) -> None:
    path, feeds, wanted = converted(name, tmp_path / "p.mlpackage", target=target)
    assert worst(evaluated(path, feeds), wanted) < 1e-5
    path, feeds, wanted = converted(name, tmp_path / "h.mlpackage", target=target, half=True)
    assert worst(evaluated(path, feeds), wanted) < 0.02


def weighted(path: Path, target: str) -> tuple[object, dict[str, np.ndarray]]:
    """A model with weights large enough to be stored in other forms, and what to feed it."""
    rng = np.random.default_rng(0)
    w, v = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((32, 16, 3, 3), (64, 32)))

    def build(mb, x):
        y = mb.relu(x=mb.conv(x=x, weight=w, pad_type="same"))
        return mb.linear(x=mb.reduce_mean(x=y, axes=[2, 3]), weight=v)

    saved(build, {"x": (1, 16, 6, 6)}, path, target=target)
    with quiet():
        model = sdk().models.MLModel(str(path), skip_model_load=True)
    return model, {"x": rng.normal(0, 1, (1, 16, 6, 6)).astype(np.float32)}


def forms(target: str) -> dict[str, Callable[[object], object]]:
    """What coremltools' optimisation makes of weights, by name."""
    cto = sdk().optimize.coreml

    def linear(model, **how):
        config = cto.OpLinearQuantizerConfig(**how, weight_threshold=64)
        return cto.linear_quantize_weights(model, cto.OptimizationConfig(config))

    def palette(model, **how):
        config = cto.OpPalettizerConfig(**how, weight_threshold=64)
        return cto.palettize_weights(model, cto.OptimizationConfig(config))

    def pruned(model, **how):
        config = cto.OpMagnitudePrunerConfig(**how, weight_threshold=64)
        return cto.prune_weights(model, cto.OptimizationConfig(config))

    def both(model):
        thin = pruned(model, target_sparsity=0.6)
        config = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=64))
        return cto.palettize_weights(thin, config, joint_compression=True)

    def rounded(model):
        thin = pruned(model, target_sparsity=0.6)
        config = cto.OptimizationConfig(
            cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=64)
        )
        return cto.linear_quantize_weights(thin, config, joint_compression=True)

    found = {
        "symmetric": partial(linear, mode="linear_symmetric"),
        "zero point": partial(linear, mode="linear"),
        "palette": partial(palette, mode="uniform", nbits=4),
        "pruned": partial(pruned, target_sparsity=0.6),
        "two of four": partial(pruned, n_m_ratio=(2, 4)),
    }
    if target == "iOS18":
        block = {"granularity": "per_block", "block_size": 16}
        group = {"granularity": "per_grouped_channel", "group_size": 8}
        found |= {
            "four bits": partial(linear, mode="linear_symmetric", dtype="int4", **block),
            "unsigned four bits": partial(linear, mode="linear", dtype="uint4", **block),
            "groups": partial(palette, mode="uniform", nbits=3, **group),
            "vectors": partial(palette, mode="kmeans", nbits=6, cluster_dim=2),
            "pruned and palette": both,
            "pruned and rounded": rounded,
        }
    return found


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_weights_in_every_form(target: str, tmp_path: Path) -> None:
    """Decompressed by coremltools itself, the package means the same."""
    model, feeds = weighted(tmp_path / "p.mlpackage", target)
    for name, change in forms(target).items():
        with quiet():
            packed = change(model)
            packed.save(str(tmp_path / "packed.mlpackage"))
            sdk().optimize.coreml.decompress_weights(packed).save(str(tmp_path / "plain.mlpackage"))
        (got,) = evaluated(tmp_path / "packed.mlpackage", feeds).values()
        (want,) = evaluated(tmp_path / "plain.mlpackage", feeds).values()
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
        with open_package(tmp_path / "packed.mlpackage") as package:
            kinds = {operation.type for operation in package.function()[0].block.operations}
        assert any(kind.startswith("constexpr_") for kind in kinds), name
