"""How long a search may go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Patience:
    """Each part of a runtime's search (accuracy ladder, accuracy alone, costs) has so many ``seconds``, and
    ends what it is at when they are over: one that takes longer leaves the next its time.

    ``lost`` says whether anything was left out for that.
    """

    seconds: float = math.inf
    lost: bool = False
    _ends: float = field(default=math.inf, init=False)

    def begin(self) -> None:
        """A part begins now."""
        self._ends = time.monotonic() + self.seconds

    def over(self) -> bool:
        """Whether what would come next is to be left out."""
        over = time.monotonic() >= self._ends
        self.lost = self.lost or over
        return over
