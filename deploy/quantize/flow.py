"""A least cut of a network, by maximum flow (Dinic 1970): choices between two with costs for unlike pairs."""

from __future__ import annotations

from collections import deque

WITHOUT_END = 1 << 100
"""The capacity of what must not be cut; whole numbers, so that sums are exact."""
SOURCE, SINK = 0, 1


class Network:
    """Nodes are numbers, ``SOURCE`` and ``SINK`` the first two; capacities are whole numbers."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]
        self._to: list[int] = []
        self._left: list[int] = []

    def node(self) -> int:
        """A new one."""
        self._edges.append([])
        return len(self._edges) - 1

    def join(self, tail: int, head: int, capacity: int) -> None:
        """What it costs that ``tail`` is on the source's side and ``head`` on the sink's."""
        for end, other, room in ((tail, head, capacity), (head, tail, 0)):
            self._edges[end].append(len(self._to))
            self._to.append(other)
            self._left.append(room)

    def source_side(self) -> set[int]:
        """The nodes on the source's side of a least cut, as few as there can be. Uses the network up.

        >>> network = Network()
        >>> a, b = network.node(), network.node()
        >>> for edge in ((SOURCE, a, 5), (a, b, 2), (b, SINK, 9)):
        ...     network.join(*edge)
        >>> network.source_side() == {SOURCE, a}
        True
        """
        while SINK in (levels := self._levels()):
            tried = [0] * len(self._edges)
            while self._push(levels, tried):
                pass
        return set(levels)

    def _levels(self) -> dict[int, int]:
        """How many edges with room lie between the source and each node that can be reached."""
        found, waiting = {SOURCE: 0}, deque([SOURCE])
        while waiting:
            node = waiting.popleft()
            for edge in self._edges[node]:
                other = self._to[edge]
                if self._left[edge] and other not in found:
                    found[other] = found[node] + 1
                    waiting.append(other)
        return found

    def _push(self, levels: dict[int, int], tried: list[int]) -> bool:
        """Fill one shortest path that has room; what leads nowhere is not tried again."""
        path: list[int] = []
        node = SOURCE
        while node != SINK:
            edges = self._edges[node]
            if tried[node] == len(edges):
                if not path:
                    return False
                node = self._to[path.pop() ^ 1]
                tried[node] += 1
                continue
            edge = edges[tried[node]]
            other = self._to[edge]
            if self._left[edge] and levels.get(other) == levels[node] + 1:
                path.append(edge)
                node = other
            else:
                tried[node] += 1
        room = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= room
            self._left[edge ^ 1] += room
        return True
