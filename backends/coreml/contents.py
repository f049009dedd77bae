"""What a package holds, ours or anybody's, as it may be shown: texts and lists are cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from backends.coreml.classes import class_names
from backends.coreml.features import Feature
from backends.coreml.interpret.machine import unknown_operations
from backends.coreml.package import open_package
from backends.coreml.program import Block, Function, Operation
from backends.coreml.runner import EXECUTED_BY
from deploy.errors import printable
from deploy.spec.contents import Execution, FileContents, OperatorCount, Port, Signature

METADATA = "deploy"
"""The entry that packages of ours have."""
_RELEASES = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
_MOST, _LONGEST = 1024, 256


def read_contents(path: Path) -> FileContents:
    """Raises BackendError where the package is damaged, or holds no program.

    ``version`` of an operator is that of the specification: Core ML counts none for operators.
    """
    with open_package(path) as package:
        said = package.specification
        function, interface = package.function()
        operations = [o for f in package.functions.values() for o in _all(f.block)]
        running = [o for o in operations if o.type != "const"]
        release = _RELEASES.get(said.version, "an unknown release")
        files = (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        return FileContents(
            format=f"Core ML, version {said.version} ({release}), operations of {_text(function.opset)}",
            bytes=sum(file.stat().st_size for file in islice(files, 4 * _MOST)),
            description=_text(said.about.get("description", "")),
            ours=METADATA in said.metadata,
            subgraphs=len(package.functions),
            tensors=sum(len(o.outputs) for o in operations),
            constant_bytes=package.weight_bytes(),
            inputs=_ports([*interface.inputs, *interface.states]),
            outputs=_ports(interface.outputs),
            classes=tuple(_text(name) for name in class_names(package, function)[:_MOST]),
            operators=_listing(running, said.version),
            signatures=tuple(
                Signature(
                    key=_text(name),
                    inputs={_text(f.name): _text(f.name) for f in islice(one.inputs, _MOST)},
                    outputs={_text(f.name): _text(f.name) for f in islice(one.outputs, _MOST)},
                )
                for name, one in islice(said.interfaces.items(), _MOST)
            ),
            metadata={_text(k): len(v.encode()) for k, v in islice(said.metadata.items(), _MOST)},
            execution=_execution(function),
        )


def _all(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _all(inner)


def _listing(operations: Iterable[Operation], version: int) -> tuple[OperatorCount, ...]:
    counts = Counter(_text(operation.type) for operation in operations)
    return tuple(
        OperatorCount(op=op, version=version, count=count)
        for op, count in islice(counts.most_common(), _MOST)
    )


def _ports(features: Iterable[Feature]) -> tuple[Port, ...]:
    """A free size is -1."""
    found = []
    for feature in islice(features, _MOST):
        free = [low != high for low, high in feature.bounds] or [False] * len(feature.shape)
        shape = tuple(-1 if open_ else n for n, open_ in zip(feature.shape, free, strict=False))
        kind = {"image": f"{feature.colour} image", "state": f"state of {feature.dtype}"}
        dtype = kind.get(feature.kind, feature.dtype or feature.kind)
        found.append(Port(name=_text(feature.name), dtype=dtype, shape=shape))
    return tuple(found)


def _execution(function: Function) -> Execution:
    unknown = sorted({_text(operation.type) for operation in unknown_operations(function)})
    refusal = f"operations that it does not know: {', '.join(unknown[:20])}" if unknown else ""
    return Execution(runtime=EXECUTED_BY, refusal=refusal)


def _text(text: str) -> str:
    return printable(text[:_LONGEST])
