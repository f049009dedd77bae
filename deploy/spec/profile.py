"""What a device can do, as data: precisions, quantization rules, sparsity, memory, runtimes.

Profiles are TOML files in ``profiles/``. Every figure carries its unit, source and date, or is the word
``unknown``. The rules of a (target, runtime) pair live here and never in code. What kernels take on
one machine is measured there, and lies in an overlay (`deploy/spec/overlay.py`).
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from deploy.spec.document import SCHEMA, Frozen
from deploy.spec.ends import Ends
from deploy.spec.tensors import Precision
from deploy.spec.unit import ComputeUnit, Rewriting

Unknown = Literal["unknown"]


class Figure(Frozen):
    """A fact with where and when it was found. ``value`` true or false states a capability."""

    value: bool | int | float | str
    unit: str = ""
    source: str = Field(min_length=1)
    date: date


Fact = Figure | Unknown


class FixedOutput(Frozen):
    """Output parameters that a runtime prescribes for an operation, whatever the data."""

    scale: float = Field(gt=0)
    zero_point: int


class QuantRules(Frozen):
    """How one runtime on one device wants static INT8, q = clamp(round_half_even(x / scale) + zero_point).

    ``compute`` lists ONNX operations with integer kernels; ``weighted`` those of them that need their second
    operand constant; ``float_output`` operations and chains (``Conv+Relu``) whose result may leave the
    integer domain without being requantized; ``float_input`` operations inside a chain whose other operand is
    read as it is, so that nothing is quantized for their sake alone; ``forward`` operations that only move
    data, so that their output shares its input's parameters; ``unify`` operations all of whose operands share
    one set.
    ``pair_moved``: what they move needs a pair behind them too, so that the runtime sees integers go through.
    ``per_tensor``: operations whose weights have one scale where others have one for each channel.
    ``centred``: by operation the operands (0 is the first) whose zero point has to be 0, weights or not.
    ``pairs``: how products of uint8 and int8 are added two by two in 16 bits that saturate, as CPUs without
    8-bit dot products do: ``running`` over all that is summed, or ``by-four`` channels at a time
    (`quantize/saturation.py`); ``exact`` where nothing saturates. ``instead_of_float``, of activations of 16
    bits: blocks that lose too much in INT8 have these sooner than they become float, being cheaper so.
    """

    activation: Literal["int8", "uint8", "int16"]
    symmetric_activation: bool = False
    weight_bits: Literal[7, 8] = 8
    per_channel: bool = True
    per_tensor: tuple[str, ...] = ()
    centred: dict[str, tuple[int, ...]] = {}
    bias: Literal["int32", "float"] = "int32"
    scale: Literal["float32", "float16"] = "float32"
    compute: tuple[str, ...]
    weighted: tuple[str, ...] = ()
    float_output: tuple[str, ...] = ()
    float_input: tuple[str, ...] = ()
    forward: tuple[str, ...] = ()
    unify: tuple[str, ...] = ()
    pair_moved: bool = True
    pairs: Literal["exact", "running", "by-four"] = "exact"
    fixed_output: dict[str, FixedOutput] = {}
    instead_of_float: bool = False
    source: str = Field(min_length=1)
    date: date

    @property
    def largest_weight(self) -> int:
        """The greatest magnitude of a weight's code."""
        return 127 if self.weight_bits == 8 else 64


class WeightGain(Frozen):
    """How many times the speed of float a product was in a form: of ``rows`` rows at most by a matrix of at
    least ``numbers`` weights.

    Of several the one of fewest rows that are enough is meant, of these that of most weights. Where none of
    the fewest rows fits, it was not faster.
    """

    rows: int = Field(ge=1)
    numbers: int = Field(ge=1)
    gain: float = Field(gt=0)


class WeightRules(Frozen):
    """How a runtime has products whose weights alone are integers, in one of the forms dynamic, w8 and w4.

    ``operations`` are the products. So many weights as ``group`` along the summed axis share a scale, all of
    an output channel without it; where ``rest`` is false and groups would leave one, all of a channel, too.
    ``others``: the weights of other operations are stored as well; those of a convolution by groups of input
    channels, too, where these go into them, else with a scale for each output channel.
    ``rounds`` says what becomes of what they are multiplied by: ``nothing``; ``group``, rounded to 8 bits
    while running, so many numbers of a row as ``rounding`` by one scale (as many as weights share one without
    it; nothing where a row has fewer); ``tensor``, all of them by one (DynamicQuantizeLinear). ``options`` go
    with it when the artifact is opened. ``pays`` says from where it was measured to be faster than float.
    """

    operations: tuple[str, ...]
    group: int | None = Field(default=None, ge=16)
    rest: bool = True
    others: bool = False
    rounds: Literal["nothing", "group", "tensor"] = "nothing"
    rounding: int | None = Field(default=None, ge=16)
    options: dict[str, bool | int | str] = {}
    pays: tuple[WeightGain, ...] = ()
    source: str = Field(min_length=1)
    date: date


class Sparsity(Frozen):
    """Structured sparsity that the runtime turns into speed. ``axis`` counts in the weight's own layout."""

    pattern: Literal["2:4"]
    axis: int
    gain: Fact


class Runtime(Frozen):
    """One way to run a graph on the device. ``name`` is the backend's name.

    ``fuses`` lists operation chains, written ``Conv+Add+Relu``, that the runtime computes as one kernel:
    nothing is quantized between their members; ``MatMul+Bias`` is a product and the Add of one constant for
    each column behind it. ``fuses_float`` lists those that only floats have, ``absorbs`` the operations and
    kernel classes whose float kernels take in everything elementwise behind them: these say what a graph will
    take, not where it is quantized. ``rewrites`` are the rules by which the float graph takes the form that
    the runtime wants. ``around`` is the type of what stays float. ``forms`` are the precisions that it has
    besides that and INT8: ``fp16`` where weights are stored so; ``w8a16`` by the rules in ``quant16``;
    ``dynamic`` for the operations in ``rounds``, which round activations while running, or by its rules in
    ``weights``, where ``w8`` and ``w4`` may have some, too. ``asked`` comes from ``[io]`` of a deploy.toml.
    ``unit`` are accelerators of the device that it uses, by name, with what they compute.
    """

    name: str
    versions: tuple[str, ...] = ()
    onnx_opset: int = Field(ge=7)
    around: Literal["float32", "float16", "bfloat16"] = "float32"
    fuses: tuple[str, ...] = ()
    fuses_float: tuple[str, ...] = ()
    absorbs: tuple[str, ...] = ()
    rewrites: tuple[Rewriting, ...] = ()
    static_shapes: bool = False
    align: int = Field(default=1, ge=1)
    forms: tuple[Precision, ...] = ()
    rounds: tuple[str, ...] = ()
    weights: dict[Literal["dynamic", "w8", "w4"], WeightRules] = {}
    quant: QuantRules | None = None
    quant16: QuantRules | None = None
    sparsity: Sparsity | None = None
    options: dict[str, bool | int | str] = {}
    unit: dict[str, ComputeUnit] = {}
    asked: Ends = Field(default=Ends(), exclude=True)
    source: str = Field(min_length=1)
    date: date

    @model_validator(mode="after")
    def _forms_have_rules(self) -> Runtime:
        if ("w8a16" in self.forms) != (self.quant16 is not None):
            raise ValueError("the form w8a16 and the table quant16 come together")
        if self.rounds and "dynamic" not in self.forms:
            raise ValueError("the form dynamic and the list rounds come together")
        if "dynamic" in self.forms and not self.rounds and "dynamic" not in self.weights:
            raise ValueError("the form dynamic needs the list rounds or the table weights.dynamic")
        return self

    @property
    def float_precision(self) -> Precision:
        """What a block computes in that is not INT8."""
        return FLOATS[self.around]

    @property
    def sparsity_gain(self) -> float:
        """How many times as fast as dense ones products with 2:4 zeros are; 1 where they are not, or nobody
        knows. A profile's figure may be of whole networks, which gain less than products do."""
        gain = None if self.sparsity is None else self.sparsity.gain
        if not isinstance(gain, Figure) or isinstance(gain.value, bool | str):
            return 1.0
        return max(1.0, float(gain.value))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Everything that a block can compute in."""
        integer: tuple[Precision, ...] = () if self.quant is None else ("int8",)
        return tuple(dict.fromkeys(("float", self.float_precision, *integer, *self.forms)))


FLOATS: dict[str, Precision] = {"float32": "float", "float16": "fp16", "bfloat16": "bf16"}


class HostVariant(Frozen):
    """For a profile that means "this machine": the profile to use where the CPU has all ``features``."""

    features: tuple[str, ...] = ()
    use: str


class Profile(Frozen):
    """A device. ``features`` are CPU flags that a host must have to stand in for it and be timed.

    ``stand_in`` is false for a device that no machine on which one builds resembles, such as a phone.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    aliases: tuple[str, ...] = ()
    inherits: str | None = None
    title: str
    arch: Literal["x86_64", "aarch64", "armv7l", "cuda", "unknown"] = "unknown"
    features: tuple[str, ...] = ()
    stand_in: bool = True
    on_host: tuple[HostVariant, ...] = ()
    precision: dict[str, Fact] = {}
    memory: dict[str, Fact] = {}
    hardware: dict[str, Fact] = {}
    runtime: tuple[Runtime, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_a_way_to_run(self) -> Profile:
        if not self.runtime and not self.on_host and self.inherits is None:
            raise ValueError("a profile needs at least one [[runtime]], on_host or inherits")
        return self

    def runtime_named(self, name: str) -> Runtime:
        """The runtime of that backend name. Raises KeyError."""
        for runtime in self.runtime:
            if runtime.name == name:
                return runtime
        raise KeyError(name)
