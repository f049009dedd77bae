"""From an exported PyTorch program to an ONNX file, and to inputs and outputs to compare that file with.

Runs in a child process only (`deploy/stages/torch_child.py`): the process that builds never imports PyTorch.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.errors import ModelError, UnsupportedError
from deploy.frontend.onnx_file import write
from deploy.frontend.torch_archive import check_names, check_records

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_Tree = TypeVar("_Tree", tuple[object, ...], dict[str, object])
_STARTS_SOMETHING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
)
_BANNED = (*_STARTS_SOMETHING, "pickle.find_class", "socket.connect", "socket.bind")
_FLOAT32 = "deploy chooses precisions itself and starts from float32: call module.float() before the export"


def load(path: Path) -> ExportedProgram:
    """The program in a ``.pt2`` file whose members were admitted by `torch_archive.check_archive`.

    From here on nothing in this process can be unpickled by name, started, or reached over the network: what
    the checks might have missed ends there. Raises ModelError.
    """
    import torch
    import torch.onnx  # what loads lazily would be refused below
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    try:
        with PT2ArchiveReader(str(path)) as reader:
            check_names(str(path), reader.get_file_names())
            check_records(str(path), reader.read_bytes)
    except (RuntimeError, AssertionError) as e:
        raise ModelError(f"{path}: a damaged .pt2 file: {brief(e)}", hint="copy it again") from e
    sys.addaudithook(_forbid)
    try:
        with _Quiet():
            contents = load_pt2(str(path))
    except Exception as e:  # PyTorch's loader raises whatever a file makes it raise
        raise ModelError(
            f"{path}: PyTorch {torch.__version__} cannot load it: {brief(e)}",
            hint="export it with this version of PyTorch, or export it to ONNX where it was made",
        ) from e
    return contents.exported_programs["model"]


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    if event in _BANNED:
        raise RuntimeError(f"refused: the file led to {event}{arguments[:2]}")


def check(name: str, program: ExportedProgram) -> list[tuple[str, str]]:
    """What to warn of. Raises ModelError or UnsupportedError for what no artifact can do justice to."""
    import torch

    _refuse_changes(sorted(program.graph_signature.buffers_to_mutate.values()))
    for parameter, tensor in program.state_dict.items():
        if tensor.device.type == "meta":
            raise ModelError(
                f"{name}: '{parameter}' has no values (device meta)",
                hint="load the weights before the export",
            )
        if tensor.dtype in (torch.float64, torch.bfloat16) or tensor.is_complex():
            raise UnsupportedError(f"{name}: '{parameter}' is {_dtype(tensor)}", hint=_FLOAT32)
    for spec, tensor in zip(_input_names(program), _placeholders(program), strict=True):
        if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.bfloat16):
            raise UnsupportedError(f"{name}: input '{spec}' is {_dtype(tensor)}", hint=_FLOAT32)
    if any(tensor.dtype == torch.float16 for tensor in program.state_dict.values()):
        return [
            ("warn", f"{name}: what is float16 stays so and is not quantized: module.float() changes that")
        ]
    return []


def digest(program: ExportedProgram) -> str:
    """SHA-256 (hex) over everything that the program computes with: its graph, its weights, its interface."""
    import torch

    found = hashlib.sha256(f"torch {torch.__version__}".encode())
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            value = node.meta.get("val")
            shape = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            found.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {shape}\n".encode())
    ranges = sorted(f"{size} {bounds}" for size, bounds in program.range_constraints.items())
    found.update(f"{program.graph_signature}\n{ranges}\n{program.call_spec}\n".encode())
    tensors = {**program.state_dict, **program.constants}
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_onnx(name: str, program: ExportedProgram, path: Path) -> list[str]:
    """Write the program as ONNX, batch normalization as nodes, without a trace of where it was made; returns
    the names of its inputs.

    Raises UnsupportedError where an operation has no ONNX form, in PyTorch's words.
    """
    import torch

    try:
        with _Quiet():
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
        _refuse_changes([name for name, buffer in run.named_buffers() if not _equal(before[name], buffer)])
        if not all(_equal(a, b) for a, b in zip(first, again, strict=True)):
            raise ModelError(
                "run twice on the same inputs, the model gives different outputs",
                hint="take out what is random; functional dropout needs training=self.training",
            )
        names = _input_names(program)
        trial = {f"input/{n}": _array(v) for n, v in zip(names, leaves, strict=True) if n in inputs}
        yield trial | {f"output/{i}": _array(v) for i, v in enumerate(first)}


def _refuse_changes(buffers: Sequence[str]) -> None:
    if buffers:
        raise ModelError(
            f"running the model changes its own buffer '{buffers[0]}'"
            + (f" and {len(buffers) - 1} more" if len(buffers) > 1 else ""),
            hint="export it in evaluation mode, model.eval(); what it remembers must be inputs and outputs",
        )


def brief(error: BaseException) -> str:
    """The first line that says something, of a message that may have hundreds."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__


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


class _Quiet:
    """PyTorch's warnings and log lines go to the user's eyes only where they are ours to pass on."""

    def __enter__(self) -> None:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
        self._caught.__exit__(None, None, None)


# --------------------------------------------------------------------------------------- inputs and outputs


def _input_names(program: ExportedProgram) -> list[str]:
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT"]


def _placeholders(program: ExportedProgram) -> list[object]:
    """The values that stand for the user's inputs, in order; symbolic sizes in their shapes."""
    wanted = set(_input_names(program))
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    return [n.meta.get("val") for n in nodes]


def _leaves(program: ExportedProgram, more: int, generator: torch.Generator) -> list[object]:
    import torch
    from torch.utils import _pytree

    placeholders = _placeholders(program)
    examples = placeholders if program.example_inputs is None else _pytree.tree_leaves(program.example_inputs)
    if len(examples) != len(placeholders):
        examples = placeholders
    first = {
        str(v.shape[0])
        for v in placeholders
        if isinstance(v, torch.Tensor) and v.ndim and not _fixed(v.shape[0])
    }
    leaves: list[object] = []
    for value, example in zip(placeholders, examples, strict=True):
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


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _output_names(program: ExportedProgram) -> list[str]:
    """The keys and field names that the model returns its outputs under, else ``output``, ``output_1``..."""
    from torch.utils import _pytree

    spec = program.call_spec.out_spec
    count = 1 if spec is None else spec.num_leaves
    tree = 0 if spec is None else _pytree.tree_unflatten(list(range(count)), spec)
    paths, _ = _pytree.tree_flatten_with_path(tree)
    taken = set(_input_names(program))
    names = []
    for position, (path, _leaf) in enumerate(paths):
        words = [
            str(getattr(key, "key", getattr(key, "name", ""))) for key in path if not hasattr(key, "idx")
        ]
        name = re.sub(r"\W+", "_", "_".join(words)).strip("_") or (
            "output" if count == 1 else f"output_{position}"
        )
        while name in taken:
            name += "_out" if name in _input_names(program) else "_"
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
