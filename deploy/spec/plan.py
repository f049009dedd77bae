"""The quantization plan: scale, zero point, axis and type per tensor; precision and reason per block.

Ranges are found once, each (target, runtime) turns them by its rules into one plan, the plan is carried
unchanged into the artifact and read back out of the written file. Integer weights stay in the graph; the
plan holds their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from deploy.spec.document import SCHEMA, Frozen
from deploy.spec.tensors import RANGES, Precision, QuantType

Origin = Literal["calibration", "weight", "bias", "fixed", "shared", "imported"]
"""Where the parameters of a tensor came from."""


class QuantParams(Frozen):
    """Affine parameters of one tensor. One scale and zero point, or one per slice along ``axis``.

    With ``group``, so many numbers along ``axis`` share one, the last ones fewer where the size leaves a
    rest; scales and zero points then stand in row order of what is left of the shape (`scale_shape`).
    """

    type: QuantType
    scale: tuple[float, ...] = Field(min_length=1)
    zero_point: tuple[int, ...] = Field(min_length=1)
    axis: int | None = None
    group: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _consistent(self) -> QuantParams:
        if len(self.scale) != len(self.zero_point):
            raise ValueError(f"{len(self.scale)} scales but {len(self.zero_point)} zero points")
        if self.axis is None and len(self.scale) != 1:
            raise ValueError("several scales need an axis")
        if self.axis is None and self.group is not None:
            raise ValueError("groups need an axis")
        if min(self.scale) <= 0:
            raise ValueError("scales must be positive")
        low, high = RANGES[self.type]
        if min(self.zero_point) < low or max(self.zero_point) > high:
            raise ValueError(f"zero point outside {self.type}")
        return self

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes along which scales lie in a tensor of that ``shape``.

        >>> six = {"scale": (1.0,) * 6, "zero_point": (0,) * 6}
        >>> QuantParams(type="int4", **six, axis=0, group=32).scale_shape((96, 2))
        (3, 2)
        """
        if self.axis is None:
            return ()
        if self.group is None:
            return (len(self.scale),)
        return tuple(-(-n // self.group) if axis == self.axis else n for axis, n in enumerate(shape))


class TensorPlan(QuantParams):
    """The parameters of one value of the graph, by which everyone who reads it computes.

    ``readers`` are the consumers that read it quantized, all of them where empty: where a float block made
    the value, other float blocks read it as it was. ``uses`` holds the exceptions: consumer node name ->
    parameters. ``bias_of`` names (input, weight) whose scales multiply to this bias's scale. ``digest`` is
    the SHA-256 of the integer data of a constant, little-endian, in row order.
    """

    origin: Origin
    shared_with: str | None = None
    bias_of: tuple[str, str] | None = None
    digest: str | None = None
    readers: tuple[str, ...] = ()
    uses: dict[str, QuantParams] = {}


class PalettePlan(Frozen):
    """A float weight that has so few different ``values`` that a codebook and indices of ``bits`` say it.

    Along ``axis`` each ``size`` neighbours have a codebook of their own; all have one where it is None.
    ``masked``: zeros, which count as a value, are left out behind a bit for each number and have no index.
    ``digest`` is the SHA-256 of the weight's numbers, little-endian, in row order: float16 where the runtime
    stores palettes and computes in that, else float32.
    """

    values: int = Field(ge=1, le=256)
    bits: int = Field(ge=1, le=8)
    axis: int | None = None
    size: int = Field(default=0, ge=0)
    masked: bool = False
    digest: str


class BlockPlan(Frozen):
    """What was chosen for a block, and why. What it takes is a machine's, and stands in `Explanation`."""

    id: str
    nodes: tuple[str, ...]
    precision: Precision
    sparsity: Literal["2:4"] | None = None
    reason: str = ""
    sqnr_db: float | None = None


class Plan(Frozen):
    """The decisions for one graph on one runtime of one target. ``palettes`` are weights that share values,
    for runtimes that store them so; others store them as the floats that they are."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    graph_sha256: str
    target: str
    runtime: str
    tensors: dict[str, TensorPlan] = {}
    palettes: dict[str, PalettePlan] = {}
    blocks: tuple[BlockPlan, ...] = ()

    @property
    def quantized(self) -> bool:
        return bool(self.tensors)


def with_overrides(
    tensors: Mapping[str, TensorPlan], overrides: Mapping[str, Mapping[str, QuantParams]]
) -> dict[str, TensorPlan]:
    """Tensors as they were read out of a file, with the parameters of single readers put in.

    ``overrides`` by value and reader; those of a value that is none of the ``tensors`` are dropped.
    """
    found = dict(tensors)
    for name, uses in overrides.items():
        if name in found:
            readers = found[name].readers and tuple(sorted({*found[name].readers, *uses}))
            found[name] = found[name].model_copy(update={"uses": dict(uses), "readers": readers})
    return found


def differences(decided: Plan, read_back: Plan, *, ulps: int = 0) -> list[str]:
    """What an artifact carries other than the plan says, one line per tensor; empty when equal.

    Only what an artifact holds is compared: palettes where it has any; of tensors type, scale, zero point,
    axis, integer data and per-use overrides. ``ulps`` allows scales to differ by that many float32 steps, for
    formats that store ranges.

    >>> one = TensorPlan(type="int8", scale=(0.5,), zero_point=(0,), origin="calibration")
    >>> decided = Plan(graph_sha256="", target="rpi5", runtime="ort", tensors={"x": one})
    >>> moved = one.model_copy(update={"zero_point": (3,)})
    >>> differences(decided, decided.model_copy(update={"tensors": {"x": moved}}))
    ['x: zero point (3,), planned (0,)']
    """
    lines = []
    for name, palette in sorted(read_back.palettes.items()):
        if decided.palettes.get(name) != palette:
            planned = (
                "other values than the plan's" if name in decided.palettes else "a palette in none's place"
            )
            lines.append(f"{name}: {planned}")
    for name in sorted(decided.tensors.keys() | read_back.tensors.keys()):
        want, got = decided.tensors.get(name), read_back.tensors.get(name)
        if want is None or got is None:
            where = "the artifact but not in the plan" if want is None else "the plan but not in the artifact"
            lines.append(f"{name}: in {where}")
            continue
        lines += [f"{name}: {d}" for d in _parameter_differences(want, got, ulps)]
        if want.digest and got.digest != want.digest:
            lines.append(f"{name}: integer data differ")
        if set(want.readers) != set(got.readers):
            lines.append(f"{name}: quantized for {sorted(got.readers)}, planned {sorted(want.readers)}")
        for consumer in sorted(want.uses.keys() | got.uses.keys()):
            a, b = want.uses.get(consumer), got.uses.get(consumer)
            if a is None or b is None:
                lines.append(f"{name} as read by {consumer}: override on one side only")
            else:
                lines += [f"{name} as read by {consumer}: {d}" for d in _parameter_differences(a, b, ulps)]
    return lines


def _parameter_differences(want: QuantParams, got: QuantParams, ulps: int) -> list[str]:
    found = []
    if want.type != got.type:
        found.append(f"type {got.type}, planned {want.type}")
    if want.axis != got.axis:
        found.append(f"axis {got.axis}, planned {want.axis}")
    if want.group != got.group:
        found.append(f"groups of {got.group}, planned {want.group}")
    if want.zero_point != got.zero_point:
        found.append(f"zero point {got.zero_point[:4]}, planned {want.zero_point[:4]}")
    if len(want.scale) != len(got.scale):
        found.append(f"{len(got.scale)} scales, planned {len(want.scale)}")
    else:
        worst = max(abs(a - b) / (abs(a) * 2.0**-23) for a, b in zip(want.scale, got.scale, strict=True))
        if worst > ulps:
            found.append(f"scale {got.scale[0]:.9g}, planned {want.scale[0]:.9g} ({worst:.1f} ulp apart)")
    return found
