"""ONNX's own node cases through each backend: written, and run by what runs its files.

    python tests/backends/node_cases.py BACKEND [Operation ...]      what is refused or differs, and why

A case is tried as it stands and with every input but the first as a constant, for sizes, axes and weights are
constants in real models; if both are refused, once more cleaned, as a build would. Cases that the reader
refuses, and so every backend, are left out.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Backend
from deploy.errors import DeployError, UnsupportedError
from deploy.frontend.onnx_file import read
from deploy.frontend.opset import upgrade
from deploy.graph.clean import clean
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.progress import SILENT
from deploy.spec.conformance import Conformance, OperationCases
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

PLAN = Plan(graph_sha256="", target="", runtime="")
_WORST_FIRST = ("differs", "fails", "passes", "unsure", "refused")
"""Of several forms of a case one that is wrong counts, else one that passes."""


_MASKED = "the maximum of a row that is -inf throughout is -3.4e38, so that its softmax stays NaN"
_EQUAL = "K that is an input: of equal values another comes first"
OPENVINO_KNOWN = {
    "test_bernoulli_seed": "other random numbers",
    "test_dynamicquantizelinear": "a tie is rounded the other way",
    "test_quantizelinear_uint16": "a range of 65536 levels in float32: 1 code off",
    "test_nonmaxsuppression_iou_threshold_boundary": "an overlap that is exactly the threshold",
    "test_reduce_max_empty_set": "the maximum of nothing",
    "test_reduce_min_empty_set": "the minimum of nothing",
    "test_top_k_same_values": _EQUAL,
    "test_top_k_same_values_largest": _EQUAL,
    "test_top_k_same_values_2d": _EQUAL,
    "test_attention_23_boolmask_fullymasked_row_nan_robustness": _MASKED,
    "test_attention_23_fullymasked_qk_matmul_output_mode3_zero": _MASKED,
    "test_attention_24_fullymasked_qk_matmul_output_mode3_zero": _MASKED,
    "test_attention_24_qk_matmul_output_mode3_softmax_precision": _MASKED,
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty": _MASKED,
    "test_attention_causal_boolmask_nan_robustness": _MASKED,
    "test_attention_local_window_gqa_rank4_mask": _MASKED,
}
_RANDOM = "other random numbers"
_FLOAT_MOD = "ONNX Runtime has the older rule: of floats only with fmod=1"
ORT_KNOWN = {
    "test_bernoulli": _RANDOM,
    "test_bernoulli_double": _RANDOM,
    "test_bernoulli_seed": _RANDOM,
    "test_training_dropout_default": _RANDOM,
    "test_training_dropout_default_mask": _RANDOM,
    "test_training_dropout": _RANDOM,
    "test_training_dropout_mask": _RANDOM,
    "test_maxunpool_export_with_output_shape": "the indices are read in another shape",
    "test_resize_downsample_scales_linear_align_corners": "corners are aligned by the rounded size",
    "test_resize_downsample_scales_cubic_align_corners": "corners are aligned by the rounded size",
    "test_convinteger_with_padding": "fails while it runs",
    "test_reduce_max_empty_set_bool": "fails while it runs",
    **{
        f"test_mod_{case}": _FLOAT_MOD
        for case in (
            "float64_mixed_sign_fmod_0",
            "float32_mixed_sign_fmod_0",
            "float16_mixed_sign_fmod_0",
            "float_edge_cases_fmod_0_float16",
            "float_edge_cases_fmod_0_float32",
            "float_edge_cases_fmod_0_float64",
        )
    },
}

TFLITE_KNOWN = dict.fromkeys(
    (
        "test_dequantizelinear",
        "test_dequantizelinear_axis",
        "test_dequantizelinear_blocked",
        "test_quantizelinear_int16",
    ),
    "written for the pairs of a plan alone; models that come quantized are imported before",
)


@dataclass(frozen=True)
class Outcome:
    """``result``: passes, refused, unsure, differs, fails while it runs, or not ours: the reader refuses it.

    ``types`` are those of the data: of the first operand, or of the result where there is none.
    """

    case: str
    op: str
    result: str
    said: str = ""
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """A backend under the rules of a profile's runtime.

    ``types`` are those of the operations in its table, empty where it has none. ``known`` says of cases that
    differ, or fail while they run, why, for data that no rule can see in the graph. Where it is not ``ran``
    the backend is asked alone, for nothing here is its runtime.
    """

    backend: Backend
    profile: str
    runtime: Runtime
    types: Mapping[str, Collection[str]] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    ran: bool = True


def ort() -> Writer:
    """ONNX Runtime on x86."""
    from backends.ort import OnnxRuntime

    runtime = load_profile("x86-vnni").runtime_named("ort")
    return Writer(OnnxRuntime(), "x86-vnni", runtime, known=ORT_KNOWN)


def openvino() -> Writer:
    """OpenVINO's CPU plugin."""
    from backends.openvino import OpenVino

    runtime = load_profile("x86-vnni").runtime_named("openvino")
    return Writer(OpenVino(), "x86-vnni", runtime, known=OPENVINO_KNOWN)


def tensorrt() -> Writer:
    """TensorRT 10, by NVIDIA's table: an engine runs on its device only."""
    from backends.tensorrt import TensorRT
    from backends.tensorrt.support import SUPPORTED

    types = {op: sorted(t.numpy().name for t in taken) for op, taken in SUPPORTED.items()}
    runtime = load_profile("nvidia-a100").runtime_named("tensorrt")
    return Writer(TensorRT(), "nvidia-a100", runtime, types, ran=False)


def tflite() -> Writer:
    """TFLite for Android."""
    from backends.tflite import TFLite
    from backends.tflite.ops import OPERATIONS

    types = {op: OPERATIONS[op].types for op in OPERATIONS}
    runtime = load_profile("android").runtime_named("tflite")
    return Writer(TFLite(), "android", runtime, types, known=TFLITE_KNOWN)


def coreml() -> Writer:
    """Core ML for iOS 18, computing in float32."""
    from backends.coreml import CoreML
    from backends.coreml.ops import OPERATIONS

    runtime = load_profile("iphone15").runtime_named("coreml")
    options = {**runtime.options, "minimum_deployment_target": "iOS18", "flexible_batch": True}
    exact = runtime.model_copy(update={"around": "float32", "options": options})
    return Writer(CoreML(), "iphone15", exact, {op: OPERATIONS[op].types for op in OPERATIONS})


WRITERS = {"ort": ort, "openvino": openvino, "tensorrt": tensorrt, "tflite": tflite, "coreml": coreml}


def outcomes(writer: Writer, only: Collection[str] = ()) -> Iterator[Outcome]:
    """All cases of operations of the standard; ``only`` those of these operations."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            ops = {node.op_type for node in case.model.graph.node}
            other = {opset.domain for opset in case.model.opset_import} - {"", "ai.onnx"}
            if "_expanded" in case.name or other or (only and not ops & set(only)):
                continue
            inputs, outputs = case.data_sets[0]
            if all(isinstance(array, np.ndarray | np.generic) for array in (*inputs, *outputs)):
                op = min(ops & writer.types.keys() or ops)
                types = tuple(np.asarray(array).dtype.name for array in (inputs or outputs)[:1])
                found = _outcome(writer, case.name, op, case.model, inputs, outputs, Path(folder))
                yield replace(found, types=types)


def _outcome(
    writer: Writer,
    name: str,
    op: str,
    proto: onnx.ModelProto,
    inputs: list[np.ndarray],
    outputs: list[np.ndarray],
    folder: Path,
) -> Outcome:
    try:
        onnx.save(proto, folder / "case.onnx")
        given = read(folder / "case.onnx").model
        model = infer(upgrade(given))
        tensor_specs((*model.graph.inputs, *model.graph.outputs))
    except (DeployError, ValueError) as e:
        return Outcome(name, op, "not ours", str(e))
    feeds = {v.name or "": np.asarray(a) for v, a in zip(given.graph.inputs, inputs, strict=False)}
    want = {v.name or "": np.asarray(a) for v, a in zip(model.graph.outputs, outputs, strict=False)}
    forms = [model]
    if len(feeds) > 1:
        forms.append(constant_but_first(model, feeds))
    tried = [_tried(writer, name, op, form, feeds, want, folder) for form in forms]
    if all(outcome.result in ("refused", "unsure") for outcome in tried):
        cleaned = clean(forms[-1].clone(), lambda *_: None).model
        tried.append(_tried(writer, name, op, cleaned, feeds, want, folder))
    return min(tried, key=lambda outcome: _WORST_FIRST.index(outcome.result))


def _tried(
    writer: Writer,
    name: str,
    op: str,
    model: ir.Model,
    feeds: dict[str, np.ndarray],
    want: dict[str, np.ndarray],
    folder: Path,
) -> Outcome:
    if not writer.ran:
        return _asked(writer, name, op, model)
    try:
        artifact = writer.backend.lower(model, PLAN, writer.runtime, folder, SILENT)
    except UnsupportedError as e:
        said = e.message.partition("': ")[2] if "': " in e.message else ""
        return Outcome(name, op, "refused", said)
    try:
        with writer.backend.open(artifact, writer.backend.options(writer.runtime, 1)) as runner:
            got = runner.run({v.name or "": feeds[v.name or ""] for v in model.graph.inputs})
    except DeployError as e:
        return Outcome(name, op, "fails", e.message)
    wrong = [output for output, array in want.items() if not agrees(array, got[output])]
    return Outcome(name, op, "differs" if wrong else "passes", ", ".join(wrong))


def _asked(writer: Writer, name: str, op: str, model: ir.Model) -> Outcome:
    """By the verdicts alone, the worst of them."""
    said = {verdict.support: verdict.reason for verdict in writer.backend.check(model, writer.runtime)}
    for support, result in (("unsupported", "refused"), ("unknown", "unsure")):
        if support in said:
            return Outcome(name, op, result, said[support])
    return Outcome(name, op, "passes")


def conformance(name: str) -> Conformance:
    """What the cases show of a backend, as it is stored beside it."""
    writer = WRITERS[name]()
    operations = by_operation(writer, outcomes(writer))
    return Conformance(
        backend=name,
        profile=writer.profile,
        runtime=_version(writer.backend),
        onnx=onnx.__version__,
        opset=writer.runtime.onnx_opset,
        ran=writer.ran,
        table=bool(writer.types),
        operations={op: cases for op, cases in operations.items() if op in writer.types or cases.taken},
    )


def by_operation(writer: Writer, outcomes: Iterable[Outcome]) -> dict[str, OperationCases]:
    """What came of the cases, summed up for each operation."""
    found: dict[str, list[Outcome]] = {op: [] for op in writer.types}
    for outcome in outcomes:
        found.setdefault(outcome.op, []).append(outcome)
    return {op: _cases(found[op], writer, op) for op in sorted(found)}


def _cases(found: list[Outcome], writer: Writer, op: str) -> OperationCases:
    taken = [o for o in found if o.result in ("passes", "differs", "fails")]
    lost = [o for o in taken if o.result != "passes"]
    said: dict[str, dict[str, list[str]]] = {"refused": {}, "unsure": {}}
    for o in found:
        if o.result in said:
            said[o.result].setdefault(without_names(o.said), []).append(o.case)
    types = writer.types.get(op) or {t for o in taken for t in o.types if o not in lost}
    return OperationCases(
        types=tuple(sorted(types)),
        taken=len(taken),
        agree=len(taken) - len(lost) if writer.ran else 0,
        differ={o.case: writer.known.get(o.case, "not known") for o in lost},
        **{key: {why: tuple(sorted(c)) for why, c in sorted(by.items())} for key, by in said.items()},
    )


def without_names(reason: str) -> str:
    """What is said of one value, said of any, in one line."""
    line = next((text for text in reason.splitlines() if text.strip()), "")
    return re.sub(r"'[^']*'", "it", re.sub(r"^input '[^']*': ", "", line.strip()))


def _version(backend: Backend) -> str:
    found = backend.available()
    return f"{found.runtime} {found.version}" if found.version else found.runtime


def constant_but_first(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    """A copy with the other inputs as constants."""
    model = model.clone()
    graph = model.graph
    for value in list(graph.inputs)[1:]:
        if value.name in feeds and feeds[value.name].dtype.kind in "fiub":
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
            graph.inputs.remove(value)
            graph.register_initializer(value)
    return model


def agrees(want: np.ndarray, got: np.ndarray) -> bool:
    """As ONNX's own tests compare, with what float32 rounds where they expect float64's digits."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    if want.dtype.kind != "f":
        return np.array_equal(want, got)
    half = want.dtype == np.float16
    loose = max(2e-3 if half else 1e-5, 1e-6 * float(np.abs(want[np.isfinite(want)]).max(initial=0)))
    return np.allclose(got.astype(float), want.astype(float), rtol=1e-3, atol=loose, equal_nan=True)


def main() -> None:
    found = list(outcomes(WRITERS[sys.argv[1]](), sys.argv[2:]))
    for outcome in found:
        if outcome.result != "passes":
            print(f"{outcome.result:9} {outcome.case}: {outcome.said}")
    results = [outcome.result for outcome in found]
    print({result: results.count(result) for result in sorted(set(results))})


if __name__ == "__main__":
    main()
