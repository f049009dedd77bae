"""What LiteRT's delegate takes of a graph: the fewer stretches, the fewer copies and changes of thread pool.

LiteRT lists all operators of the file and behind them a DELEGATE for each stretch that the delegate computes,
whose operators are those between its outputs and its inputs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from backends.tflite.runner import TFLiteOptions, open_interpreter
from backends.tflite.write import notes_in, opened
from deploy.spec.manifest import KnownHazard

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

_DELEGATE = "DELEGATE"


def partitions(engine: Interpreter) -> tuple[int, list[tuple[int, str]]]:
    """How many stretches the delegate took, and place and name of each operator that it left."""
    names, stretches = operators_by_stretch(engine)
    taken = {place for stretch in stretches for place in stretch}
    return len(stretches), [(place, name) for place, name in enumerate(names) if place not in taken]


def operators_by_stretch(engine: Interpreter) -> tuple[list[str], list[list[int]]]:
    """The names of all operators of the file, and the places of those of each stretch, in order."""
    nodes = engine._get_ops_details()
    delegates = [node for node in nodes if node["op_name"] == _DELEGATE]
    own = [node for node in nodes if node["op_name"] != _DELEGATE]
    makers = {int(i): place for place, node in enumerate(own) for i in node["outputs"]}
    taken: set[int] = set()
    stretches = []
    for delegate in delegates:
        borders = {int(i) for i in delegate["inputs"]}
        waiting = [int(i) for i in delegate["outputs"]]
        stretch = []
        while waiting:
            place = makers.get(waiting.pop())
            if place is None or place in taken:
                continue
            taken.add(place)
            stretch.append(place)
            waiting += [int(i) for i in own[place]["inputs"] if int(i) not in borders]
        stretches.append(sorted(stretch))
    return [str(node["op_name"]) for node in own], stretches


def split(path: Path, options: TFLiteOptions) -> list[KnownHazard]:
    """What splits a file of ours into several stretches, by node; nothing where one stretch does."""
    if options.delegate == "none":
        return []
    count, left = partitions(open_interpreter(options, path=path))
    if count == 1 or not left:
        return []
    with opened(path) as file:
        said = notes_in(file)["nodes"]
    assert isinstance(said, list)
    kinds = Counter(name for _, name in left)
    listed = ", ".join(f"{number} {name}" if number > 1 else name for name, number in sorted(kinds.items()))
    parts = f"computes {count} parts of the network" if count else "computes nothing of the network"
    return [
        KnownHazard(
            kind="partitions",
            severity="warning" if count else "note",
            text=f"XNNPACK {parts}, for it has no kernel for {listed} as they stand here",
            nodes=tuple(dict.fromkeys(str(said[index]) for index, _ in left if said[index])),
        )
    ]
