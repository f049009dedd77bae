"""The steps that make a graph smaller: what is taken away, how much of it, and by which measure.

Shares are of what the graph has when the step begins: ``macs = 0.3`` takes away 30 % of its
multiply-accumulates. What a step may cost in the metric is ``max_drop``, in the metric's unit and in all that
it does, its own training included; without it the project's budget holds. A step that costs more is tried
again with less, and left out where no less helps.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deploy.spec.document import Given
from deploy.spec.finetune import Finetune

Criterion = Literal["obs", "l1", "l2", "batch_norm", "taylor", "random"]
Scope = Literal["measured", "global", "layer"]

Goal = Literal["macs", "parameters", "latency", "size"]
GOALS: tuple[Goal, ...] = ("macs", "parameters", "latency", "size")
"""What a step may aim at; one of them at a time."""


class Prune(Given):
    """Remove channels, heads and widths with all that is tied to them; what is left is dense.

    One goal: a share of ``macs``, ``parameters`` or predicted ``latency`` on the target to take away, or the
    ``size`` in bytes that the weights may still have in float32. ``criterion`` orders channels: by the loss
    that their removal leaves after the others make up for it (Optimal Brain Surgeon, on samples), by their
    norms, by the scale of their batch norm, by what the loss would change by their removal (Taylor; without
    labels the answers), or at random. ``scope``: how the goal is shared out; by the divergence of the outputs
    measured layer by layer, by ranking all channels together, or the same share everywhere. ``isomorphic``
    ranks only groups of the same structure against each other (Fang et al. 2024). ``compensate`` refits what
    reads the removed channels by least squares on samples; ``tune`` is in how many steps all that is left is
    then trained to make what the graph made, on samples without labels: 200, say, where there is no
    ``finetune``.

    In each round at most the share ``per_round`` of what is there goes, and ``finetune`` trains after each.
    ``protect`` are patterns of node names that keep their outputs; ``align`` what widths are a multiple of,
    the target's own where it is not given, or half, a quarter of it for narrow groups; no group keeps less
    than the share ``keep``.
    """

    step: Literal["prune"] = "prune"
    macs: float | None = Field(default=None, gt=0, lt=1)
    parameters: float | None = Field(default=None, gt=0, lt=1)
    latency: float | None = Field(default=None, gt=0, lt=1)
    size: int | None = Field(default=None, gt=0)
    criterion: Criterion = "obs"
    scope: Scope = "measured"
    isomorphic: bool = False
    compensate: bool = True
    tune: int = Field(default=0, ge=0)
    per_round: float = Field(default=0.2, gt=0, lt=1)
    finetune: Finetune | None = None
    protect: tuple[str, ...] = ()
    align: int | None = Field(default=None, ge=1)
    keep: float = Field(default=0.1, ge=0, lt=1)
    samples: int = Field(default=256, ge=1)
    max_drop: float | None = Field(default=None, ge=0)

    @property
    def goal(self) -> Goal:
        """The name of the one goal that is given."""
        return next(name for name in GOALS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"say what to take away: one of {', '.join(GOALS)}")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two goals, of which one would be missed; give one")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> Prune:
        if self.isomorphic and self.scope != "global":
            raise ValueError("isomorphic ranks channels against each other; set scope = 'global'")
        if self.tune and self.finetune is not None:
            raise ValueError("tune trains without labels at the end, finetune with them; give one of the two")
        return self


class Shrink(Given):
    """A thinner copy, the student of a distillation: every group keeps the share ``width`` of its channels.

    ``widths`` says otherwise for the nodes that a pattern names; the first pattern that fits holds. Which
    channels stay is up to ``criterion``; ``fresh`` draws all weights anew (He et al. 2015) instead of keeping
    those of the channels that stay. A student is never undone for what it costs unless ``max_drop`` is said.
    """

    step: Literal["shrink"] = "shrink"
    width: float = Field(gt=0, lt=1)
    widths: dict[str, float] = {}
    criterion: Literal["l1", "l2", "batch_norm", "random"] = "l2"
    fresh: bool = False
    protect: tuple[str, ...] = ()
    align: int | None = Field(default=None, ge=1)
    max_drop: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _shares(self) -> Shrink:
        odd = [pattern for pattern, share in self.widths.items() if not 0 < share <= 1]
        if odd:
            raise ValueError(f"widths are shares above 0 and up to 1, which that of '{odd[0]}' is not")
        return self


class Sparsify(Given):
    """Set weights to zero. ``2:4``: two of four neighbours, which some hardware skips; ``unstructured``: the
    share ``sparsity``, wherever they lie, which makes files at rest smaller and nothing faster.

    ``method``: by Optimal Brain Surgeon on samples, with the weights that stay made to fit, or by magnitude.
    ``permute`` first brings channels into the order that loses least. ``tolerance`` is the error of a layer,
    as a share of its signal's power, up to which it is accepted; ``protect`` are patterns of names of nodes
    that stay as they are. A step that no target of the build gains by is refused unless ``anyway``.

    ``tune`` is in how many steps all that is left is trained to make what the graph made, on samples without
    labels, those of training if there are any: 200, say, where there is no ``finetune``. ``finetune`` trains
    with the zeros kept; unstructured zeros then come in ``rounds``, fast at first (Zhu and Gupta 2017), and
    ``rewind`` sets what is left back to where it was when the step began before the last training (Frankle
    and Carbin 2019).
    """

    step: Literal["sparsify"] = "sparsify"
    pattern: Literal["2:4", "unstructured"] = "2:4"
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    method: Literal["obs", "magnitude"] = "obs"
    scope: Literal["layer", "global"] = "layer"
    permute: bool = True
    tolerance: float | None = Field(default=None, gt=0)
    protect: tuple[str, ...] = ()
    rounds: int = Field(default=1, ge=1)
    rewind: bool = False
    tune: int = Field(default=0, ge=0)
    finetune: Finetune | None = None
    anyway: bool = False
    samples: int = Field(default=256, ge=1)
    max_drop: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> Sparsify:
        if self.pattern == "2:4" and self.sparsity is not None:
            raise ValueError("2:4 is half of all weights by itself; leave sparsity out")
        if self.pattern == "unstructured" and self.sparsity is None:
            raise ValueError("say how much is to become zero: sparsity = 0.5, say")
        if self.pattern == "2:4" and (self.rounds > 1 or self.rewind):
            raise ValueError("2:4 has no rounds; rounds and rewind belong to unstructured sparsity")
        if self.tune and self.finetune is not None:
            raise ValueError("tune trains without labels at the end, finetune with them; give one of the two")
        if (self.rounds > 1 or self.rewind) and self.finetune is None:
            raise ValueError("rounds and rewind are for training in between: give finetune as well")
        return self


class LowRank(Given):
    """Split products into two thinner ones (SVD; Tucker for convolutions), where that saves computation.

    ``lost`` is the share of a weight's energy, or with samples of its outputs' power, that may be lost;
    ``tolerance`` the error of the layer up to which it is accepted.
    """

    step: Literal["lowrank"] = "lowrank"
    lost: float = Field(default=0.01, gt=0, lt=1)
    tolerance: float | None = Field(default=None, gt=0)
    align: int | None = Field(default=None, ge=1)
    finetune: Finetune | None = None
    samples: int = Field(default=256, ge=1)
    max_drop: float | None = Field(default=None, ge=0)


class Cluster(Given):
    """Share weights: each becomes the nearest of ``centres`` values (k-means), per tensor or for every
    ``group`` of output channels. The plan keeps the values, for runtimes that store palettes."""

    step: Literal["cluster"] = "cluster"
    centres: int = Field(default=16, ge=2, le=256)
    group: int | None = Field(default=None, ge=1)
    tolerance: float | None = Field(default=None, gt=0)
    max_drop: float | None = Field(default=None, ge=0)
