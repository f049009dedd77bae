"""ONNX's own node cases of the operations that a backend writes itself, each through what runs its files.

    python tests/backends/node_cases.py tflite|coreml [Operation ...]      what is refused or differs, and why

A case is tried as it stands and with every input but the first as a constant, for sizes, axes and weights are
constants in real models; if both are refused, once more cleaned, as a build would.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
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
from deploy.progress import SILENT
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

PLAN = Plan(graph_sha256="", target="", runtime="")
_WORST_FIRST = ("differs", "fails", "passes", "refused")
"""Of several forms of a case one that is wrong counts, else one that passes."""


@dataclass(frozen=True)
class Outcome:
    """``result``: passes, refused, differs, fails while it runs, or not ours: the reader refuses it."""

    case: str
    op: str
    result: str
    said: str = ""


@dataclass(frozen=True)
class Writer:
    """A backend, the profile's rules that it writes by, and the operations of its table."""

    backend: Backend
    runtime: Runtime
    operations: Collection[str]


def tflite() -> Writer:
    """TFLite for Android."""
    from backends.tflite import TFLite
    from backends.tflite.ops import OPERATIONS

    return Writer(TFLite(), load_profile("android").runtime_named("tflite"), frozenset(OPERATIONS))


def coreml() -> Writer:
    """Core ML for iOS 18, computing in float32."""
    from backends.coreml import CoreML
    from backends.coreml.ops import OPERATIONS

    runtime = load_profile("iphone15").runtime_named("coreml")
    options = {**runtime.options, "minimum_deployment_target": "iOS18", "flexible_batch": True}
    exact = runtime.model_copy(update={"around": "float32", "options": options})
    return Writer(CoreML(), exact, frozenset(OPERATIONS))


WRITERS = {"tflite": tflite, "coreml": coreml}


def outcomes(writer: Writer, only: Collection[str] = ()) -> Iterator[Outcome]:
    """All cases whose operations are all listed; ``only`` those of these operations."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            ops = {node.op_type for node in case.model.graph.node}
            if (
                "_expanded" in case.name
                or not ops <= set(writer.operations)
                or (only and not ops & set(only))
            ):
                continue
            inputs, outputs = case.data_sets[0]
            if all(isinstance(array, np.ndarray | np.generic) for array in (*inputs, *outputs)):
                yield _outcome(writer, case.name, min(ops), case.model, inputs, outputs, Path(folder))


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
    except (DeployError, ValueError) as e:
        return Outcome(name, op, "not ours", str(e))
    feeds = {v.name or "": np.asarray(a) for v, a in zip(given.graph.inputs, inputs, strict=False)}
    want = {v.name or "": np.asarray(a) for v, a in zip(model.graph.outputs, outputs, strict=False)}
    forms = [model]
    if len(feeds) > 1:
        forms.append(constant_but_first(model, feeds))
    tried = [_tried(writer, name, op, form, feeds, want, folder) for form in forms]
    if all(outcome.result == "refused" for outcome in tried):
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
