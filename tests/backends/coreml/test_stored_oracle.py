"""Forms of weights against coremltools' own optimisation passes: the same operations, the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, with_weights

from backends.coreml import CoreML
from backends.coreml.package import Package, open_package
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import quiet, sdk
from deploy.adapter.profiles import load_profile
from deploy.execute.compare import largest_error
from deploy.graph.qdq import insert
from deploy.progress import SILENT
from deploy.quantize.palettes import palettes_of
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan
from deploy.spec.profile import Runtime

RUNTIME = load_profile("iphone15").runtime_named("coreml")
NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,16,6,6] x) => (float[1,48] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, u)
}"""
SHAPES = {"w": (32, 16, 3, 3), "u": (48, 32)}
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (1, 16, 6, 6)).astype(np.float32)}


def runtime(target: str) -> Runtime:
    options = {**RUNTIME.options, "minimum_deployment_target": target}
    return RUNTIME.model_copy(update={"options": options})


def lowered(model: ir.Model, target: str, folder: Path, tensors: dict[str, TensorPlan]) -> Artifact:
    folder.mkdir()
    on = runtime(target)
    palettes = palettes_of(model, CoreML().palette_forms(on))
    plan = Plan(graph_sha256="", target="", runtime="coreml", tensors=tensors, palettes=palettes)
    return CoreML().lower(model, plan, on, folder, SILENT)


def stored(path: Path) -> Counter[str]:
    """Operations by which weights are stored."""
    with open_package(path) as package:
        types = [o.type for o in package.function()[0].block.operations]
    return Counter(kind for kind in types if kind.startswith("constexpr_"))


def operations(package: Package) -> dict[str, object]:
    """What makes the weights of the convolution and the product, by our names for these."""
    block = package.function()[0].block
    makers = {named.name: o for o in block.operations for named in o.outputs}
    names = {"conv": "w", "linear": "u"}
    return {names[o.type]: makers[o.inputs["weight"][0]] for o in block.operations if o.type in names}


def ran(path: Path) -> np.ndarray:
    with CoreMLRunner(path, CoreMLOptions()) as runner:
        fed = {spec.name: FEEDS["x"].astype(spec.dtype) for spec in runner.inputs}
        (found,) = runner.run(fed).values()
    return found


def optimised(folder: Path, target: str, change: Callable[[object, object], object]) -> tuple[Path, Path]:
    """Our float package after one of coremltools' passes, and what coremltools expands that to."""
    artifact = lowered(with_weights(NET, drawn(SHAPES)), target, folder / "plain", {})
    packed, dense = folder / "packed.mlpackage", folder / "dense.mlpackage"
    ct = sdk()
    with quiet():
        model = ct.models.MLModel(str(artifact.main.parent), skip_model_load=True)
        made = change(ct.optimize.coreml, model)
        made.save(str(packed))
        ct.optimize.coreml.decompress_weights(made).save(str(dense))
    return packed, dense


def palettized(cto, model, **how):
    config = cto.OpPalettizerConfig(mode="kmeans", weight_threshold=64, num_kmeans_workers=1, **how)
    return cto.palettize_weights(model, cto.OptimizationConfig(config))


def pruned(cto, model, **how):
    config = cto.OpMagnitudePrunerConfig(weight_threshold=64, **how)
    return cto.prune_weights(model, cto.OptimizationConfig(config))


def rounded(cto, model, joint: bool = False, **how):
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=64, **how)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(config), joint_compression=joint)


GROUPS = {"granularity": "per_grouped_channel", "group_size": 8}
FLOATS = {
    ("iOS16", "4 bits"): lambda c, m: palettized(c, m, nbits=4),
    ("iOS17", "6 bits"): lambda c, m: palettized(c, m, nbits=6),
    ("iOS18", "3 bits"): lambda c, m: palettized(c, m, nbits=3),
    ("iOS18", "2 bits for 8 channels"): lambda c, m: palettized(c, m, nbits=2, **GROUPS),
    ("iOS16", "zeros"): lambda c, m: pruned(c, m, target_sparsity=0.7),
    ("iOS17", "2:4"): lambda c, m: pruned(c, m, n_m_ratio=(2, 4)),
    ("iOS18", "zeros"): lambda c, m: pruned(c, m, target_sparsity=0.5),
    ("iOS18", "zeros and 4 bits"): lambda c, m: c.palettize_weights(
        pruned(c, m, target_sparsity=0.7),
        c.OptimizationConfig(c.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=64)),
        joint_compression=True,
    ),
}  # fmt: skip


FAST = {
    ("iOS16", "4 bits"), ("iOS18", "2 bits for 8 channels"), ("iOS16", "zeros"),
    ("iOS18", "zeros and 4 bits"), ("iOS18", "zeros and 8 bits"), ("iOS18", "codebooks of 8 bits"),
}  # fmt: skip


def cases(all_):
    return [pytest.param(*one, marks=() if one in FAST else pytest.mark.slow) for one in all_]


@pytest.mark.parametrize(("target", "how"), cases(FLOATS))
def test_floats_lie_as_coremltools_stores_them(target: str, how: str, tmp_path: Path) -> None:
    """What its pass made of the weights, in a graph: we write the same form, of the same size."""
    packed, dense = optimised(tmp_path, target, FLOATS[target, how])
    with open_package(dense) as package:
        arrays = {n: package.constant(o.attributes["val"]) for n, o in operations(package).items()}
    assert arrays.keys() == SHAPES.keys()
    model = with_weights(NET, {name: array.astype(np.float32) for name, array in arrays.items()})
    ours = lowered(model, target, tmp_path / "ours", {})
    path = ours.main.parent
    assert stored(path) == stored(packed) != Counter()
    held = dict(CoreML().weights(ours, SHAPES))
    for name, array in arrays.items():
        np.testing.assert_array_equal(held[name], array)
    with open_package(packed) as theirs:
        assert abs(theirs.weight_bytes() - ours.weight_bytes) <= 128
    np.testing.assert_array_equal(ran(path), ran(packed))
    np.testing.assert_array_equal(ran(path), ran(dense))


INTEGERS = {
    ("iOS16", "8 bits"): lambda c, m: rounded(c, m),
    ("iOS18", "8 bits"): lambda c, m: rounded(c, m),
    ("iOS18", "4 bits in blocks"): lambda c, m: rounded(
        c, m, dtype="int4", granularity="per_block", block_size=16
    ),
    ("iOS18", "codebooks of 8 bits"): lambda c, m: rounded(
        c, palettized(c, m, nbits=4), joint=True, granularity="per_tensor"
    ),
    ("iOS18", "zeros and 8 bits"): lambda c, m: rounded(c, pruned(c, m, target_sparsity=0.7), joint=True),
}  # fmt: skip


@pytest.mark.parametrize(("target", "how"), cases(INTEGERS))
def test_integers_lie_as_coremltools_stores_them(target: str, how: str, tmp_path: Path) -> None:
    """Its codes and scales as a plan: we write the same operations and numbers, and read the same codes."""
    packed, dense = optimised(tmp_path, target, INTEGERS[target, how])
    tensors, codes = {}, {}
    with open_package(packed) as package:
        for name, operation in operations(package).items():
            codes[name], params = parameters(package, operation)
            tensors[name] = TensorPlan(**params.model_dump(), origin="weight")
    model = insert(with_weights(NET, drawn(SHAPES)), tensors, codes)
    ours = lowered(model, target, tmp_path / "ours", tensors)
    assert stored(ours.main.parent) == stored(packed) != Counter()
    with open_package(packed) as theirs:
        assert abs(theirs.weight_bytes() - ours.weight_bytes) <= 128
    np.testing.assert_array_equal(ran(ours.main.parent), ran(packed))
    assert largest_error({"y": ran(dense)}, {"y": ran(packed)}) < 2e-3, "scales times codes, in float16"
    assert largest_error(reference(model, FEEDS), {"y": ran(ours.main.parent)}) < 0.01


def parameters(package: Package, operation) -> tuple[np.ndarray, QuantParams]:
    """Codes and parameters as they stand in somebody's operation, by the specification of each form."""

    def argument(one, name: str) -> np.ndarray:
        binding = one.inputs[name][0] if name in one.inputs else one.attributes[name]
        return package.constant(binding)

    if operation.type == "constexpr_affine_dequantize":
        codes, scale, axis = (argument(operation, n) for n in ("quantized_data", "scale", "axis"))
        shape = [-1 if at == int(axis) else 1 for at in range(codes.ndim)]
        scale = scale.reshape(shape)
    elif operation.type == "constexpr_blockwise_shift_scale":
        codes, scale = argument(operation, "data"), argument(operation, "scale")
    elif operation.type == "constexpr_lut_to_dense":
        block = package.function()[0].block
        inner = next(o for o in block.operations if operation.inputs["lut"][0] in
                     [named.name for named in o.outputs])  # fmt: skip
        book, scale = argument(inner, "data"), argument(inner, "scale")[..., 0, 0]
        codes = book.reshape(-1)[argument(operation, "indices")]
    else:
        block = package.function()[0].block
        inner = next(o for o in block.operations if operation.inputs["nonzero_data"][0] in
                     [named.name for named in o.outputs])  # fmt: skip
        mask, scale = argument(inner, "data_mask") != 0, argument(inner, "scale")
        codes = np.zeros(mask.shape, np.int8)
        codes[mask] = argument(inner, "nonzero_data")
    grouped = next((at for at in range(codes.ndim) if 1 < scale.shape[at] < codes.shape[at]), None)
    group = None if grouped is None else codes.shape[grouped] // scale.shape[grouped]
    axis = (0 if scale.size > 1 else None) if grouped is None else grouped
    if grouped is not None:  # ONNX's blocks have a scale for each place of the other axes
        shape = [scale.shape[at] if at == grouped else n for at, n in enumerate(codes.shape)]
        scale = np.broadcast_to(scale, shape)
    flat = tuple(float(s) for s in scale.astype(np.float32).ravel())
    kind = "int4" if np.abs(codes.astype(int)).max() < 8 else "int8"
    given = {"type": kind, "scale": flat, "zero_point": (0,) * len(flat), "axis": axis, "group": group}
    return codes.astype(np.int8), QuantParams.model_validate(given)
