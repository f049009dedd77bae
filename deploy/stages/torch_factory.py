"""The user's own function that makes a PyTorch model, called, and what it gave exported.

Runs in a child process only (`torch_child.py`), which is where the user's code may do as it likes.
"""

from __future__ import annotations

import inspect
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from deploy.data.python_ref import load_function
from deploy.data.source import nearest
from deploy.errors import DeployError, ModelError, UsageError
from deploy.frontend.torch_program import brief

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_RETURNS = (
    "return a torch.nn.Module, (module, example_inputs), (module, example_inputs, dynamic_shapes) or a "
    "torch.export program"
)
_AGREE = 1e-3
"""Relative to the largest magnitude; samples that see each other differ by far more."""


def find_function(reference: str, root: Path) -> Callable[..., object]:
    """The function that ``package.module:function`` names, looked up in ``root`` and among what is installed.

    ``root`` stays importable: the user's code may import its neighbours when it runs. Raises UsageError.
    """
    sys.path.insert(0, str(root.resolve()))
    return load_function(reference, root)


def make_program(
    reference: str,
    function: Callable[..., object],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    notes: list[tuple[str, str]],
) -> ExportedProgram:
    """Call the function with the random numbers seeded, and export what it returns.

    A module is put into evaluation mode. Its inputs are the examples given with it, else zeros of ``shapes``.
    The first dimension becomes free where samples do not influence each other. ``notes`` takes
    ("note" | "warn", text). Raises UsageError where sizes are missing or belong to no input, ModelError where
    the function fails, returns something else, or its model cannot be exported.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        made = function()
    except (Exception, SystemExit) as e:  # noqa: BLE001  # the user's code may raise anything
        _blame(reference, e)
    if isinstance(made, torch.export.ExportedProgram):
        return made
    parts = made if isinstance(made, tuple) and made else (made,)
    module = parts[0]
    if not isinstance(module, torch.nn.Module) or len(parts) > 3:
        raise ModelError(f"{reference} returned {_told(made)}, not a model", hint=_RETURNS)
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{reference} returned a TorchScript module, which PyTorch does not export any more",
            hint="return the torch.nn.Module that it was made from",
        )
    if module.training:
        module.eval()
        notes.append(("note", f"{reference}: the model was put into evaluation mode, as model.eval() does"))
    empty = [n for n, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if empty:
        raise ModelError(
            f"{reference}: '{empty[0]}' has no values (device meta)",
            hint="load the weights before returning it",
        )
    module.to("cpu")
    args, kwargs = _examples(reference, module, parts[1] if len(parts) > 1 else None, shapes)
    with torch.no_grad():
        try:
            module(*args, **kwargs)
        except Exception as e:  # noqa: BLE001  # the user's code may raise anything
            _blame(f"{reference}: the model, run on its example inputs,", e)
        if len(parts) == 3 and parts[2] is not None:
            return _export(reference, module, args, kwargs, parts[2])
        if len(parts) == 1:  # --shape fixes sizes
            return _export(reference, module, args, kwargs, None)
        free = _with_free_batch(module, args, kwargs)
        if free is not None:
            return free
        notes.append(
            ("warn", f"{reference}: the sizes of the example inputs are fixed, the batch too; return "
             "(module, example_inputs, dynamic_shapes) to say what is free")
        )  # fmt: skip
        return _export(reference, module, args, kwargs, None)


def _blame(who: str, error: BaseException) -> NoReturn:
    """Raise a ModelError with the user's own error and the last line of theirs that it came through."""
    if isinstance(error, DeployError):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")]
    own = [f for f in own if not Path(f.filename).is_relative_to(Path(__file__).parents[1])]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    if isinstance(error, SystemExit):
        raise ModelError(
            f"{who} called sys.exit({error.code}){where}", hint="return the model instead"
        ) from error
    raise ModelError(
        f"{who} raised {brief(error)}{where}", hint="run it alone in Python and correct it"
    ) from error


def _told(made: object) -> str:
    if isinstance(made, tuple):
        return f"a tuple of ({', '.join(type(part).__name__ for part in made)})"
    return "nothing" if made is None else f"a {type(made).__name__}"


def _examples(
    reference: str, module: torch.nn.Module, given: object, shapes: Mapping[str, Sequence[int]]
) -> tuple[tuple[object, ...], dict[str, object]]:
    import torch

    if given is None:
        return (), _zeros(reference, module, shapes)
    if isinstance(given, torch.Tensor):
        return (given.cpu(),), {}
    if isinstance(given, Mapping):
        return (), {str(name): _on_cpu(value) for name, value in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(_on_cpu(value) for value in given), {}
    raise ModelError(
        f"{reference} returned {_told(given)} as example inputs",
        hint="give a tensor, a tuple of them, or a dictionary by argument name",
    )


def _on_cpu(value: object) -> object:
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, value)


def _zeros(reference: str, module: torch.nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, object]:
    """Inputs of the sizes that the user gave, in the type of the weights."""
    import torch

    parameters = inspect.signature(module.forward).parameters.values()
    usual = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in usual if p.default is p.empty]
    missing = [name for name in needed if name not in shapes]
    if missing:
        example = " ".join(f"--shape {name}=1,3,224,224" for name in missing[:2])
        raise UsageError(
            f"{reference} returned a model without example inputs: the size of '{missing[0]}' is not known",
            hint=f"return (module, example_inputs), or give {example} for float inputs",
        )
    unknown = [name for name in shapes if name not in {p.name for p in usual}]
    if unknown:
        names = [p.name for p in usual]
        raise UsageError(
            f"--shape: the model of {reference} has no input '{unknown[0]}'",
            hint=f"{nearest(unknown[0], names)}it has: {', '.join(names)}",
        )
    floats = [p.dtype for p in module.parameters() if p.dtype.is_floating_point]
    dtype = floats[0] if floats else torch.float32
    return {p.name: torch.zeros(tuple(shapes[p.name]), dtype=dtype) for p in usual if p.name in shapes}


def _export(
    reference: str,
    module: torch.nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    dynamic_shapes: object,
) -> ExportedProgram:
    import torch

    try:
        program: ExportedProgram = torch.export.export(
            module,
            args,
            kwargs,
            dynamic_shapes=dynamic_shapes,  # type: ignore[arg-type]  # the user's, unchecked
        )
    except Exception as e:  # tracing runs the user's code and raises errors of many kinds
        raise ModelError(
            f"{reference}: torch.export cannot capture the model: {brief(e)}",
            hint="see what torch.export.export(model.eval(), example_inputs) says; control flow by values "
            "needs torch.cond",
        ) from e
    return program


def _with_free_batch(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> ExportedProgram | None:
    """The program with its first dimension free; None where samples influence each other or PyTorch needs
    its size. Two samples are traced: PyTorch takes a size of 1 for a fixed one."""
    import torch
    from torch.utils import _pytree

    leaves, structure = _pytree.tree_flatten((args, kwargs))
    tensors = [v for v in leaves if isinstance(v, torch.Tensor) and v.ndim]
    if not tensors:
        return None
    batch = tensors[0].shape[0]
    along = [isinstance(v, torch.Tensor) and v.ndim > 0 and v.shape[0] == batch for v in leaves]
    first = [_noise(v) if takes else v for v, takes in zip(leaves, along, strict=True)]
    other = [_other(v) if takes else v for v, takes in zip(first, along, strict=True)]
    both = [torch.cat([a, b]) if takes else a for a, b, takes in zip(first, other, along, strict=True)]
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf, takes in zip(both, along, strict=True):
        if takes:
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    try:
        together, one, two = (
            _outputs(module, *_pytree.tree_unflatten(v, structure)) for v in (both, first, other)
        )
        if not all(_independent(t, a, b) for t, a, b in zip(together, one, two, strict=True)):
            return None
        positional, named = _pytree.tree_unflatten(both, structure)
        free = shapes.dynamic_shapes(module, positional, named)  # type: ignore[no-untyped-call]
        program: ExportedProgram = torch.export.export(module, positional, named, dynamic_shapes=free)
    except Exception:  # noqa: BLE001  # whatever two samples do to the user's model: one alone has run
        return None
    first_sizes = [
        node.meta["val"].shape[0]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        and isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].ndim
    ]  # fmt: skip
    return program if any(isinstance(size, torch.SymInt) for size in first_sizes) else None


def _noise(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.randn_like(tensor) if tensor.dtype.is_floating_point else tensor


def _other(tensor: torch.Tensor) -> torch.Tensor:
    """Another sample of the same kind: whole numbers of it may be all that the model takes."""
    import torch

    return torch.randn_like(tensor) if tensor.dtype.is_floating_point else tensor.roll(1, -1)


def _outputs(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> list[object]:
    from torch.utils import _pytree

    found: list[object] = _pytree.tree_leaves(module(*args, **kwargs))
    return found


def _independent(together: object, first: object, second: object) -> bool:
    import torch

    if not all(isinstance(v, torch.Tensor) for v in (together, first, second)):
        return together == first
    assert isinstance(together, torch.Tensor)
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    apart = torch.cat([first, second]) if first.ndim else first
    if apart.shape != together.shape:
        return False
    scale = max(float(apart.abs().max()), 1e-30) if apart.numel() else 1.0
    return (
        not bool((apart.double() - together.double()).abs().max() > _AGREE * scale) if apart.numel() else True
    )
