"""How much a network loses when one block alone is treated: rounded to fewer bits, made sparse, pruned.

Two figures say it. ``score`` is predicted from one backward pass for all blocks; it ranks blocks, and its
magnitude may be wrong by an order or two. ``kl`` and ``sqnr_db`` are measured at the network's outputs.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from deploy.spec.document import SCHEMA, Frozen

Treatment = Literal["int8", "w8a16", "int4", "w4", "2:4", "prune"]
"""What is done to one block while all others stay float.

``int8`` and ``int4`` round its weights and what it reads (and makes, where the rules say so) to so many bits,
``w8a16`` to 8 and 16; ``w4`` rounds large weights alone. ``2:4`` clears the two smallest of each four weights
along the input channels, ``prune`` the output channels of smallest norm, 30 % of them.
"""


class Effect(Frozen):
    """What one treatment of one block does to the outputs. None: not found out, or without meaning there.

    ``score`` is the second-order term of ``kl`` (of the noise over the signal, where there is no ``kl``).
    ``kl`` is the mean Kullback-Leibler divergence from the float network's class probabilities, in nats;
    None where outputs are no classes. ``sqnr_db`` is the outputs' signal over their noise, None where nothing
    was lost. ``ruined``: the outputs became infinite or NaN, and nothing else is known.
    """

    score: float | None = Field(default=None, ge=0)
    kl: float | None = Field(default=None, ge=0)
    sqnr_db: float | None = None
    ruined: bool = False
    measured: bool = False

    @property
    def harm(self) -> float | None:
        """What blocks are ordered by, the larger the worse: measured if it was, else the score."""
        if not self.measured:
            return self.score
        if self.ruined:
            return math.inf
        if self.kl is not None:
            return self.kl
        return 0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10)


class BlockSensitivity(Frozen):
    """The effects on one block, of those treatments that change anything in it."""

    id: str
    kind: str
    effects: dict[Treatment, Effect]


class Sensitivity(Frozen):
    """The table of one graph on one set of samples; blocks in graph order.

    ``rules`` names the runtime by whose rules values were rounded, "plain" where none was asked for.
    ``measure`` says what ``kl`` and ``score`` are about: class probabilities, or plain numbers.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    graph_sha256: str
    data_sha256: str
    samples: int = Field(ge=1)
    seed: int = Field(ge=0)
    rules: str
    measure: Literal["classes", "values"]
    treatments: tuple[Treatment, ...]
    blocks: tuple[BlockSensitivity, ...]

    def worst_first(self) -> tuple[BlockSensitivity, ...]:
        """Blocks by the harm of the first treatment that both of two blocks have, the worst first."""

        def key(block: BlockSensitivity) -> tuple[float, ...]:
            found = [block.effects[t].harm if t in block.effects else None for t in self.treatments]
            return tuple(math.inf if harm is None else -harm for harm in found)

        return tuple(sorted(self.blocks, key=key))

    def ranks(self, treatment: Treatment) -> dict[str, int]:
        """Rank by ``score``, 1 the worst, of the blocks that have one."""
        scored = [
            (block.effects[treatment].score or 0.0, block.id)
            for block in self.blocks
            if treatment in block.effects and block.effects[treatment].score is not None
        ]
        return {id_: rank for rank, (_, id_) in enumerate(sorted(scored, key=lambda s: -s[0]), 1)}
