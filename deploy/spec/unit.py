"""What a unit beside the processor computes, an accelerator that a runtime may use: its rules, as data.

Vendors do not say what theirs take, or say it in prose; what is known was seen by developers. So a rule says
who found it, and what no rule and no list speaks of is unknown.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deploy.spec.document import Frozen

Rewriting = Literal[
    "join-group-norm",
    "unroll-recurrent",
    "gather-as-slices",
    "fold-batches",
    "linear-as-convolution",
    "fewer-transposes",
]
"""Rules by which a graph takes the form that a runtime wants, before anything is calibrated: what they do
stands in `deploy/graph/rules.py`."""

Effect = Literal["leaves", "may leave", "slower"]
"""What becomes of an operation: another unit computes it, another one may, or it takes longer where it is."""

NumberType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Condition(Frozen):
    """When a rule holds of an operation: where all that is given does; always, where nothing is.

    ``rank_above``, ``size_above`` (of ``axes``, counted from the end as -1; of all without it), ``types`` and
    ``free_sizes`` are true of any tensor that it reads or makes, constants left out; ``types`` of what it
    reads alone. With ``border`` only inputs and outputs of the model count. ``last_below``: such a tensor has
    fewer numbers along its last axis. ``kernel_above`` are the largest kernels, the last axis first,
    ``stride_not_of`` the strides that are good, ``dilation_above`` the largest dilation. ``channels_not_of``:
    its results are no multiple of so many channels. ``constant``: these operands (0 is the first) are
    constants. ``moves_last``: what lies along the last axis is not what lay there. ``attributes``: it has one
    of these values, written out in the graph. ``options``: the artifact is made with them.
    """

    rank_above: int | None = Field(default=None, ge=0)
    axes: tuple[Annotated[int, Field(lt=0)], ...] = ()
    size_above: int | None = Field(default=None, ge=1)
    last_below: int | None = Field(default=None, ge=2)
    border: bool = False
    types: tuple[NumberType, ...] = ()
    free_sizes: bool = False
    kernel_above: tuple[Annotated[int, Field(ge=1)], ...] = ()
    stride_not_of: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dilation_above: int | None = Field(default=None, ge=1)
    channels_not_of: int | None = Field(default=None, ge=2)
    constant: tuple[Annotated[int, Field(ge=0)], ...] = ()
    moves_last: bool = False
    attributes: dict[str, tuple[int | str, ...]] = {}
    options: dict[str, bool | int | str] = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> Condition:
        if self.axes and self.size_above is None:
            raise ValueError("axes say where size_above counts: give it, too")
        tensors = (self.rank_above, self.size_above, self.last_below, self.types or None)
        if self.border and all(part is None for part in tensors) and not self.free_sizes:
            raise ValueError("border needs rank_above, size_above, last_below, types or free_sizes")
        return self


class UnitRule(Frozen):
    """What becomes of ``operations`` (of all without them) where the condition holds, in ``words``.

    ``said``: by the ``vendor``, or seen by a ``developer``, who may have had another generation of it or
    another version of its system. ``remedies`` are rewritings that take the reason away.
    """

    operations: tuple[str, ...] = ()
    when: Condition = Condition()
    effect: Effect
    words: str = Field(min_length=1)
    said: Literal["vendor", "developer"]
    remedies: tuple[Rewriting, ...] = ()
    source: str = Field(min_length=1)
    date: date


class ComputeUnit(Frozen):
    """A unit of the device on which a runtime wants to compute everything; ``otherwise`` does the rest.

    ``runs`` are ONNX operations of which it is known that what the runtime makes of them runs there, unless a
    rule says otherwise. What stands in neither is unknown.
    """

    runs: tuple[str, ...] = ()
    otherwise: str = Field(min_length=1)
    rule: dict[_Name, UnitRule] = {}
    source: str = Field(min_length=1)
    date: date
