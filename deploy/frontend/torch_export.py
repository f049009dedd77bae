"""From an exported PyTorch program to an ONNX file, and to inputs and outputs to compare that file with.

Runs in a child process only (`deploy/stages/torch_child.py`): the process that builds never imports PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.errors import ModelError, UnsupportedError
from deploy.frontend.onnx_file import write
from deploy.frontend.torch_program import Quiet, brief, input_names, placeholders, refuse_changes

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_Tree = TypeVar("_Tree", tuple[object, ...], dict[str, object])


def write_onnx(name: str, program: ExportedProgram, path: Path) -> list[str]:
    """Write the program as ONNX, batch normalization as nodes, without a trace of where it was made; returns
    the names of its inputs.

    Raises UnsupportedError where an operation has no ONNX form, in PyTorch's words.
    """
    import torch

    try:
        with Quiet():
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as e:  # the exporter raises its own errors, and those of all that it calls
        unknown = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", _chain(e))))
        raise UnsupportedError(
            f"{name}: PyTorch cannot export {', '.join(unknown)} to ONNX"
            if unknown
            else f"{name}: PyTorch cannot export it to ONNX: {brief(_cause(e))}",
            hint="write that part with other operations"
            if unknown
            else "name a function that makes the model, package.module:function, or hand in an ONNX file",
        ) from e
    assert made is not None
    model = made.model
    if model.functions:
        passes.InlinePass()(model)
    _strip(model)
    _name_outputs(model, _output_names(program))
    _name_dimensions(model)
    write(model, path)
    return [value.name or "" for value in model.graph.inputs]


def trials(program: ExportedProgram, inputs: Sequence[str], seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Random inputs and what the program makes of them: ``input/<name>``, and ``output/<position>``.

    First at the sizes of its export, then with one sample more where the first dimension is free. Floats are
    standard normal; integers are those of the export, since a model may take few others.
    """
    import torch
    from torch.utils import _pytree

    generator = torch.Generator().manual_seed(seed)
    run = program.module(check_guards=False)
    before = {name: buffer.clone() for name, buffer in run.named_buffers()}
    for more in (0, 1):
        leaves = _leaves(program, more, generator)
        if more and all(
            _same_shape(a, b) for a, b in zip(leaves, _leaves(program, 0, generator), strict=True)
        ):
            return
        args: tuple[object, ...]
        kwargs: dict[str, object]
        args, kwargs = _pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        try:
            with torch.no_grad():
                first, again = (_pytree.tree_leaves(run(*_copied(args), **_copied(kwargs))) for _ in range(2))
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            if more:
                return
            raise ModelError(
                f"the model does not run on random inputs: {brief(e)}", hint="try it in PyTorch itself"
            ) from e
        refuse_changes([name for name, buffer in run.named_buffers() if not _equal(before[name], buffer)])
        if not all(_equal(a, b) for a, b in zip(first, again, strict=True)):
            raise ModelError(
                "run twice on the same inputs, the model gives different outputs",
                hint="take out what is random; functional dropout needs training=self.training",
            )
        names = input_names(program)
        trial = {f"input/{n}": _array(v) for n, v in zip(names, leaves, strict=True) if n in inputs}
        yield trial | {f"output/{i}": _array(v) for i, v in enumerate(first)}


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _chain(error: BaseException | None) -> str:
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)


# --------------------------------------------------------------------------------------- inputs and outputs


def _leaves(program: ExportedProgram, more: int, generator: torch.Generator) -> list[object]:
    import torch
    from torch.utils import _pytree

    values = placeholders(program)
    examples = values if program.example_inputs is None else _pytree.tree_leaves(program.example_inputs)
    if len(examples) != len(values):
        examples = values
    first = {
        str(v.shape[0]) for v in values if isinstance(v, torch.Tensor) and v.ndim and not _fixed(v.shape[0])
    }
    leaves: list[object] = []
    for value, example in zip(values, examples, strict=True):
        if not isinstance(value, torch.Tensor):
            leaves.append(example)
            continue
        shape = [_hint(size) + (more if str(size) in first else 0) for size in value.shape]
        if value.dtype.is_floating_point:
            leaves.append(torch.randn(shape, generator=generator).to(value.dtype))
        elif isinstance(example, torch.Tensor) and not _fake(example) and example.numel():
            leaves.append(torch.from_numpy(np.resize(example.detach().cpu().numpy(), shape)))
        else:
            leaves.append(torch.ones(shape, dtype=value.dtype))
    return leaves


def _fixed(size: object) -> bool:
    return isinstance(size, int)


def _hint(size: object) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)
    return int(hint) if hint is not None else 2


def _fake(tensor: object) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _same_shape(a: object, b: object) -> bool:
    return getattr(a, "shape", None) == getattr(b, "shape", None)


def _copied(tree: _Tree) -> _Tree:
    import torch
    from torch.utils import _pytree

    copied: _Tree = _pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, tree)
    return copied


def _equal(a: object, b: object) -> bool:
    import torch

    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a == b
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _array(value: object) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy())


def _output_names(program: ExportedProgram) -> list[str]:
    """The keys and field names that the model returns its outputs under, else ``output``, ``output_1``..."""
    from torch.utils import _pytree

    spec = program.call_spec.out_spec
    count = 1 if spec is None else spec.num_leaves
    tree = 0 if spec is None else _pytree.tree_unflatten(list(range(count)), spec)
    paths, _ = _pytree.tree_flatten_with_path(tree)
    taken = set(input_names(program))
    names = []
    for position, (path, _leaf) in enumerate(paths):
        words = [
            str(getattr(key, "key", getattr(key, "name", ""))) for key in path if not hasattr(key, "idx")
        ]
        name = re.sub(r"\W+", "_", "_".join(words)).strip("_") or (
            "output" if count == 1 else f"output_{position}"
        )
        while name in taken:
            name += "_out" if name in input_names(program) else "_"
        taken.add(name)
        names.append(name)
    return names


# ------------------------------------------------------------------------------------------------- the graph


def _strip(model: ir.Model) -> None:
    """Out with what says where the model was made: stack traces, scopes, paths, prose."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.name = "graph"
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Give the outputs these names; what is put out twice, or is an input or a constant, is so by a copy."""
    outputs = model.graph.outputs
    others = {v.name: v for node in model.graph for v in node.outputs} | dict(model.graph.initializers)
    for position, name in enumerate(names):
        value = outputs[position]
        if value.producer() is None or value in outputs[:position]:
            node = ir.node("Identity", [value], name=f"{name}_copy")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            model.graph.append(node)
            outputs[position] = value = node.outputs[0]
        taken = others.get(name)
        if taken is not None and taken is not value:
            taken.name = f"{name}_inner"
        value.name = name


def _name_dimensions(model: ir.Model) -> None:
    """``batch`` and ``<input>_<axis>`` in place of PyTorch's s77, in every shape."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol and re.fullmatch(r"[a-z]+\d+", symbol) and symbol not in names:
                free = axis == 0 and "batch" not in names.values()
                names[symbol] = "batch" if free else f"{value.name}_{axis}"
    for graph in model.graphs():
        inner = [out for node in graph for out in node.outputs]
        for value in (*graph.inputs, *inner):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else re.sub(r"[a-z]+\d+", lambda m: names.get(m[0], m[0]), size.value)
