"""The ONNX standard's own node cases, run by the torch executor and compared with the expected outputs.

A case goes the way of every model: it is read and brought to the pinned operator set. What the reader refuses
(types that ONNX Runtime does not feed) or writes out in other operations is built as it stands, at its own
operator set.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch

from deploy.errors import DeployError
from deploy.execute.ops import TABLE
from deploy.execute.program import Program
from deploy.frontend.onnx_file import read
from deploy.graph.edit import constant

_TORCH = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
"""Types that numpy has from ml_dtypes: how to view them, and what torch calls them."""


_BYTES = {
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint2): np.uint8,
}
"""Codes that torch has no type for, and in what they lie there."""


@dataclass(frozen=True)
class Case:
    """One model with its inputs and expected outputs. ``op`` is its only operation, else "expanded"."""

    name: str
    op: str
    ops: frozenset[str]
    model: onnx.ModelProto
    inputs: list[object]
    outputs: list[object]
    rtol: float
    atol: float


@cache
def cases() -> tuple[Case, ...]:
    """All node cases of the installed onnx package, about 1,880."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where a case divides by zero or overflows on purpose
        return tuple(_collect())


def _collect() -> Iterator[Case]:
    from onnx.backend.test.case.node import collect_testcases

    np.random.seed(0)  # most inputs are random numbers: the same ones every time
    for case in collect_testcases(None):
        assert case.model is not None and case.data_sets is not None
        nodes = case.model.graph.node
        ops = frozenset(
            f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in nodes
        )
        op = next(iter(ops)) if len(nodes) == 1 else "expanded"
        inputs, outputs = case.data_sets[0]
        yield Case(case.name, op, ops, case.model, list(inputs), list(outputs), case.rtol, case.atol)


def failure(case: Case) -> str | None:
    """Why the case fails, None where it passes."""
    try:
        got = run(case)
    except Exception as e:  # noqa: BLE001  a list of what fails, with the reasons, is what is wanted
        return f"{type(e).__name__}: {str(e)[:200]}"
    for index, (want, found) in enumerate(zip(case.outputs, got, strict=True)):
        said = difference(want, found, case)
        if said:
            return f"output {index}: {said}"
    return None


def run(case: Case) -> list[object]:
    """The outputs that the executor computes."""
    model = _graph(case)
    program = Program(model.graph, TABLE, model.opset_imports[""])
    for name, value in model.graph.initializers.items():
        array = constant(value)
        assert array is not None
        program.template[program.slots[name]] = to_torch(array)
    named = dict(zip([v.name for v in case.model.graph.input], case.inputs, strict=False))
    torch.manual_seed(0)
    with torch.no_grad():
        return program.run([to_torch(named.get(name)) for name in program.inputs])


def _graph(case: Case) -> ir.Model:
    proto = case.model
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(proto.SerializeToString())
        file.flush()
        with suppress(DeployError):
            model = read(Path(file.name)).model
            if case.op == "expanded" or any(node.op_type == case.op for node in model.graph):
                return model
    model = ir.serde.deserialize_model(proto)
    for index, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.name = node.name or f"n{index}"
    return model


def to_torch(value: object) -> object:
    """A tensor, or a list of them for a sequence; what torch has no type for stays as it is."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if isinstance(value, list):
        return [to_torch(part) for part in value]
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype in _BYTES:
        value = value.astype(_BYTES[value.dtype])
    if value.dtype in _TORCH:
        view, dtype = _TORCH[value.dtype]
        return torch.from_numpy(np.array(value).view(view)).view(dtype)
    if value.dtype.kind in "fiubc" and value.dtype.isbuiltin != 2:  # 2: a type of ml_dtypes
        return torch.from_numpy(np.array(value))
    return value


def to_numpy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        for numpy_type, (view, dtype) in _TORCH.items():
            if value.dtype == dtype:
                bits = value.contiguous().view(torch.uint16 if view is np.uint16 else torch.uint8)
                return bits.numpy().view(numpy_type)
        return value.detach().numpy()
    return value


def difference(want: object, found: object, case: Case) -> str | None:
    """What differs, None where nothing does beyond the tolerance of the case."""
    if isinstance(want, list):
        if not isinstance(found, list) or len(want) != len(found):
            return f"a sequence of {len(want)} expected"
        parts = (difference(a, b, case) for a, b in zip(want, found, strict=True))
        return next((part for part in parts if part), None)
    if isinstance(want, onnx.TensorProto):
        want = onnx.numpy_helper.to_array(want)
    want, got = np.asarray(want), np.asarray(to_numpy(found))
    if want.dtype in _BYTES:
        want = want.astype(_BYTES[want.dtype])
    if want.dtype != got.dtype:
        return f"type {got.dtype}, expected {want.dtype}"
    if want.shape != got.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.dtype.kind in "OUS":
        return None if want.tolist() == got.tolist() else "text differs"
    if want.dtype.kind in "iub":
        return None if np.array_equal(want, got) else f"{int((want != got).sum())} whole numbers differ"
    rtol, atol = max(case.rtol, 1e-3), max(case.atol, 1e-7)
    if want.dtype == np.float16:
        atol = max(atol, 1e-3)
    a, b = (
        want.astype(np.complex128 if want.dtype.kind == "c" else np.float64),
        got.astype(np.complex128 if want.dtype.kind == "c" else np.float64),
    )
    if np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True):
        return None
    return f"off by {np.nanmax(np.abs(np.where(a == b, 0, a - b))):.3g}"


def report(ops: Mapping[str, object] = TABLE) -> dict[str, list[tuple[str, str]]]:
    """Failures by operation, with the reason, over all cases of operations in ``ops``."""
    found: dict[str, list[tuple[str, str]]] = {}
    for case in cases():
        if case.ops <= ops.keys():
            said = failure(case)
            if said:
                found.setdefault(case.op, []).append((case.name, said))
    return found


if __name__ == "__main__":
    import sys

    wanted = set(sys.argv[1:])
    failed = report()
    total = sum(case.ops <= TABLE.keys() for case in cases())
    for op, listed in sorted(failed.items()):
        if not wanted or op in wanted:
            for name, reason in listed:
                print(f"{op:24} {name}: {reason}")
    print(f"{len(TABLE)} operations; {total - sum(map(len, failed.values()))} of {len(cases())} cases pass")
