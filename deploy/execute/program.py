"""A graph as a flat list of steps over numbered slots: what is left of it once everything is decided.

Names, attributes and optional inputs are resolved when the program is made; a run is a loop over kernels. A
slot is emptied after its last use, so that nothing outlives its readers but what autograd keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploy.errors import BackendError, DeployError, UnsupportedError
from deploy.execute.optable import Build, Kernel, Mode, Node

_ABSENT = -1


@dataclass(frozen=True)
class Step:
    """One node: its kernel, the slots it reads (-1: absent) and writes, and those nobody reads after it."""

    kernel: Kernel
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    op: str
    name: str


class Program:
    """A graph or the body of an If, Loop or Scan.

    ``inputs`` and ``outputs`` are names; ``captured`` those values that a body reads from around it. What a
    name stands for is ``slots[name]``; constants are in ``template`` and stay there from run to run.
    """

    def __init__(
        self, graph: ir.Graph, table: Mapping[str, Build], version: int, mode: Mode | None = None
    ) -> None:
        self.inputs = [v.name or "" for v in graph.inputs if v.name not in graph.initializers]
        self.outputs = [v.name or "" for v in graph.outputs]
        self.slots: dict[str, int] = {}
        self.captured: list[str] = []
        self.constants = list(graph.initializers)
        self.template: list[object] = []
        for name in (*self.inputs, *self.constants):
            self._slot(name)
        self._table, self._version, self._mode = table, version, mode or Mode()
        nodes = list(graph)
        _require_known(nodes, table)
        made = [self._resolve(node) for node in nodes]
        last = {slot: index for index, (_, reads, _) in enumerate(made) for slot in reads}
        kept = {self.slot_of(name) for name in (*self.constants, *self.outputs)}
        self.steps = [
            Step(
                kernel,
                reads,
                writes,
                tuple(s for s in {*reads, *writes} - kept - {_ABSENT} if last.get(s, index) == index),
                node.op_type,
                node.name or "",
            )
            for index, (node, (kernel, reads, writes)) in enumerate(zip(nodes, made, strict=True))
        ]

    def slot_of(self, name: str) -> int:
        """The slot of a value; one that is unknown here is captured from around."""
        if name not in self.slots:
            self.captured.append(name)
            self._slot(name)
        return self.slots[name]

    def _slot(self, name: str) -> int:
        self.slots[name] = len(self.template)
        self.template.append(None)
        return self.slots[name]

    def _resolve(self, node: ir.Node) -> tuple[Kernel, tuple[int, ...], tuple[int, ...]]:
        bodies: list[Program] = []

        def body(name: str) -> Program:
            attribute = node.attributes[name]
            bodies.append(Program(attribute.as_graph(), self._table, self._version, self._mode))
            return bodies[-1]

        kernel = self._table[node.op_type](Node(node, self._version, body, self._mode))
        reads = [_ABSENT if v is None else self.slot_of(v.name or "") for v in node.inputs]
        # What bodies read from around them is handed to the kernel behind the node's own inputs, in order.
        reads += [self.slot_of(name) for inner in bodies for name in inner.captured]
        writes = [self._slot(v.name) if v.name else _ABSENT for v in node.outputs]
        return kernel, tuple(reads), tuple(writes)

    def run(
        self, given: Sequence[object], outer: Sequence[object] = (), want: Sequence[str] = ()
    ) -> list[object]:
        """Outputs in order, then the values named in ``want``.

        ``given`` are the inputs in order, ``outer`` the captured values. Raises BackendError naming the node
        that failed.
        """
        slots = list(self.template)
        for name, value in zip((*self.inputs, *self.captured), (*given, *outer), strict=True):
            slots[self.slots[name]] = value
        wanted = {self.slots[name] for name in want}
        for step in self.steps:
            try:
                result = step.kernel(*[None if slot < 0 else slots[slot] for slot in step.reads])
            except DeployError:
                raise
            except Exception as e:
                raise BackendError(
                    f"{step.op} '{step.name}' failed in torch: {e}", hint="check the shapes and types fed"
                ) from e
            if len(step.writes) == 1:
                slots[step.writes[0]] = result[0] if type(result) is tuple else result
            else:
                many = result if type(result) is tuple else (result,)
                for slot, value in zip(step.writes, many, strict=False):  # who computes more than is read
                    if slot >= 0:
                        slots[slot] = value
            for slot in step.frees:
                if slot not in wanted:
                    slots[slot] = None
        return [slots[self.slots[name]] for name in (*self.outputs, *want)]


def _require_known(nodes: Sequence[ir.Node], table: Mapping[str, Build]) -> None:
    unknown = [n for n in nodes if n.domain not in ("", "ai.onnx") or n.op_type not in table]
    if unknown:
        listed = "".join(f"\n  {n.domain + '.' if n.domain else ''}{n.op_type} '{n.name}'" for n in unknown)
        raise UnsupportedError(
            f"the torch executor has no kernel for {len(unknown)} nodes:{listed}",
            hint="replace these operations in the model; docs list those that can be trained",
        )
