"""The clock at which a core really works, by counting its cycles.

A virtual machine hides its clock, and what a file says is a plan. But an addition of two registers whose
result the next one needs takes one cycle on every x86 processor (Fog, "Instruction tables"), so a chain of
them tells cycles by the wall clock. The chain is machine code of our own: 64 additions, a loop around them.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

_ADDS = 64
_WINDOW_S = 0.001

Chain = Callable[[int, int], int]


def effective_clock(rounds: int) -> tuple[float, float] | None:
    """Megahertz and their spread (interquartile over median) over windows of a millisecond.

    A window in which another process had the core counts as a slower clock. None elsewhere than on x86-64
    Linux, and where memory may not be made executable.
    """
    chain = add_chain()
    if chain is None:
        return None
    loops = 1000
    while _timed(chain, loops) < _WINDOW_S / 2:
        loops *= 2
    rates = [loops * _ADDS / _timed(chain, loops) / 1e6 for _ in range(rounds)]
    low, typical, high = np.percentile(rates, [25, 50, 75])
    return float(typical), float((high - low) / typical)


def add_chain() -> Chain | None:
    """A function of two whole numbers that adds the second to 0, 64 times the first."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return None
    body = b"\x48\x01\xf0" * _ADDS + b"\x48\xff\xcf"  # add rax, rsi; dec rdi
    back = -(len(body) + 6)
    code = b"\x31\xc0" + body + b"\x0f\x85" + back.to_bytes(4, "little", signed=True) + b"\xc3"  # jnz; ret
    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE)
    except OSError:
        return None
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        return None
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(address)

    def chain(loops: int, step: int, _keep: mmap.mmap = memory) -> int:
        return int(function(loops, step))

    return chain


def _timed(chain: Chain, loops: int) -> float:
    start = time.perf_counter()
    chain(loops, 1)
    return time.perf_counter() - start
