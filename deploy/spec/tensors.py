"""The shared words for tensors: how they are laid out, typed, normalised and quantized."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from deploy.spec.document import Frozen

Layout = Literal["NCHW", "NHWC", "any"]
"""Order of the axes of an image-like tensor; ``any`` where the axes have no such meaning."""

Colours = Literal["RGB", "BGR"]
"""Order of the channels of an image in colour."""

QuantType = Literal["int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "int64"]
"""Integer storage types; ``int64`` is that of biases beside activations of 16 bits."""

Precision = Literal["float", "fp16", "bf16", "fp8", "int8", "w8a16", "dynamic", "w8", "w4"]
"""What a block computes in. ``float`` is the runtime's plain float32; ``fp8`` floats of 8 bits, E4M3;
``w8a16`` integers, the activations of 16 bits; ``dynamic`` integers by scales found while running; ``w8`` and
``w4`` floats, the weights alone are integers (a profile's rules may round, while running, what they are
multiplied by). ``fp8`` is measured, no plan has it yet."""

INTEGER: tuple[Precision, ...] = ("int8", "w8a16")
"""Those whose activations have parameters in the plan."""

RANGES: dict[QuantType, tuple[int, int]] = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
"""Smallest and largest code of each storage type."""


class Normalisation(Frozen):
    """``(x * scale - mean) / std`` per channel, applied once: by the data reader or, folded, by the graph."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    folded: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Normalisation:
        if any(s == 0 for s in self.std):
            raise ValueError("std must not contain 0")
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ValueError(f"mean has {len(self.mean)} values, std has {len(self.std)}")
        return self

    @property
    def identity(self) -> bool:
        return self.scale == 1.0 and set(self.mean) == {0.0} and set(self.std) == {1.0}


class TensorSpec(Frozen):
    """An input or output. ``shape`` holds sizes, or the name of a dimension that is free.

    ``table_rows``: the integers fed are ids that look up a table of so many rows.

    >>> str(TensorSpec(name="x", dtype="float32", shape=("n", 3, 224, 224), layout="NCHW"))
    'x: float32[n, 3, 224, 224]'
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: Layout = "any"
    colours: Colours = "RGB"
    normalisation: Normalisation | None = None
    table_rows: int | None = None

    @property
    def folded(self) -> bool:
        """Whether the graph itself normalises what is fed."""
        return self.normalisation is not None and self.normalisation.folded

    @property
    def raw(self) -> bool:
        """Whether pixels are fed as they are: uint8, or int8, which then is the pixel less 128."""
        return self.folded and self.dtype in ("uint8", "int8")

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"
