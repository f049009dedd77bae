"""What a file in a runtime's own format holds, whoever wrote it: what ``deploy inspect`` shows of one."""

from __future__ import annotations

from deploy.spec.document import Frozen


class Port(Frozen):
    """An input or output. ``shape``: -1 for a free size. ``scale`` and ``zero_point`` where it is quantized,
    several along ``axis``, of which the first few are listed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None


class OperatorCount(Frozen):
    """An operator of the format in one version, and how often it stands in the file."""

    op: str
    version: int
    count: int


class Signature(Frozen):
    """A named way to call the file: names that a program uses, each with the tensor's own."""

    key: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class Execution(Frozen):
    """What the runtime here does with the file. ``refusal`` says why it does not open, empty where it does.

    ``partitions`` are the stretches that ``delegate`` computes; ``outside`` the operators left to the
    runtime's own kernels. None and empty where that is not known.
    """

    runtime: str
    refusal: str = ""
    delegate: str = ""
    partitions: int | None = None
    outside: tuple[OperatorCount, ...] = ()


class FileContents(Frozen):
    """``bytes`` is the file's size, ``constant_bytes`` those of weights and parameters; ``metadata`` the size
    of each entry by name. ``classes`` are the names of those that it tells apart. ``ours``: it holds the
    entry that our own files have."""

    format: str
    bytes: int
    description: str = ""
    ours: bool = False
    subgraphs: int
    tensors: int
    constant_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    classes: tuple[str, ...] = ()
    operators: tuple[OperatorCount, ...]
    signatures: tuple[Signature, ...] = ()
    metadata: dict[str, int] = {}
    execution: Execution
