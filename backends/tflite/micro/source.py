"""The network as C++ sources for a program on a microcontroller: its bytes, its arena, its operators."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.micro.arena import Arena
from backends.tflite.micro.bare import bare
from backends.tflite.micro.kernels import KERNELS

HEADER, SOURCE = "model.h", "model.cc"
_PER_LINE = 20


def write_sources(folder: Path, content: bytes, out: Emitter, needed: Arena) -> dict[str, int]:
    """Both files, beside the one whose network they hold; returns the memory that it takes, by kind."""
    stripped = bare(content)
    (folder / HEADER).write_text(header(out, len(stripped), needed))
    (folder / SOURCE).write_bytes(source(stripped))
    return {"flash": len(stripped), **needed.figures()}


def header(out: Emitter, size: int, needed: Arena) -> str:
    """The declarations. ``size`` is the array's, in bytes.

    The operators are added by a template, so that the header needs none of TensorFlow Lite Micro's.
    """
    adds = resolver_calls(op.code for op in out.operators)
    failing = " ||\n        ".join(f"resolver.{call}() != 0" for call in adds)
    return f"""\
// Written by deploy: the network of model.tflite, without names and notes.
#ifndef DEPLOY_MODEL_H_
#define DEPLOY_MODEL_H_

#include <cstddef>

extern const unsigned char g_model[];
constexpr std::size_t kModelBytes = {size};

// Estimated for 32-bit pointers: {needed.tensors} bytes of tensors (planned as the interpreter plans them),
// {needed.records} for the interpreter's and kernels' records, {needed.scratch} more for CMSIS-NN's kernels.
// MicroInterpreter::arena_used_bytes() tells what it really takes.
constexpr std::size_t kArenaBytes = {needed.total};

// MicroMutableOpResolver<kOperators> holds all kernels that the network needs.
constexpr unsigned int kOperators = {len(adds)};

// Adds them; true where that worked.
template <typename Resolver>
bool AddOperators(Resolver& resolver) {{
    return !({failing});
}}

#endif  // DEPLOY_MODEL_H_
"""


def source(content: bytes) -> bytes:
    """The file's bytes as an array, at a multiple of 16 bytes as its tensors must be."""
    table = np.array([f"{code}," for code in range(256)], "S4")
    lines = bytearray(
        b'// Written by deploy: the network of model.tflite, without names and notes.\n#include "model.h"\n\n'
        b"alignas(16) const unsigned char g_model[kModelBytes] = {\n"
    )
    codes = np.frombuffer(content, np.uint8)
    step = _PER_LINE << 12
    for start in range(0, len(codes), step):
        for row in range(start, min(start + step, len(codes)), _PER_LINE):
            lines += b"".join(table[codes[row : row + _PER_LINE]].tolist()) + b"\n"
    return bytes(lines + b"};\n")


def resolver_calls(codes: Iterable[str]) -> list[str]:
    """The resolver's methods for these operators, each once, by name."""
    return [f"Add{name}" for name in sorted({KERNELS[code].add for code in codes})]
