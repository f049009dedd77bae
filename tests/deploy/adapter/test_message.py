"""What passes between us and a child: whole, or refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from deploy.adapter.message import Garbled, Message, receive, send

PLAIN = arrays(
    st.sampled_from(["float32", "int8", "uint8", "int64", "bool", "float16"]),
    array_shapes(min_dims=0, min_side=0),
)


@given(st.dictionaries(st.text(), PLAIN, max_size=3), st.dictionaries(st.text(), st.integers()))
def test_what_is_sent_is_received(found: dict[str, np.ndarray], said: dict[str, object]) -> None:
    stream = io.BytesIO()
    send(stream, Message(said, found))
    stream.seek(0)
    back = receive(stream, 1 << 30)
    assert back is not None and back.said == said and list(back.arrays) == list(found)
    for name, array in found.items():
        assert back.arrays[name].dtype == array.dtype and back.arrays[name].shape == array.shape
        assert back.arrays[name].tobytes() == array.tobytes() and back.arrays[name].flags.writeable
    assert receive(stream, 1 << 30) is None


def test_an_array_in_another_order_arrives_as_it_reads() -> None:
    stream = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    send(stream, Message({}, {"a": array}))
    stream.seek(0)
    back = receive(stream, 100)
    assert back is not None and np.array_equal(back.arrays["a"], array)


def _framed(text: bytes, size: int, rest: bytes = b"") -> io.BytesIO:
    return io.BytesIO(struct.pack("<QQ", len(text), size) + text + rest)


@pytest.mark.parametrize(
    "stream",
    [
        io.BytesIO(b"short"),
        io.BytesIO(struct.pack("<QQ", 2**60, 0)),
        io.BytesIO(struct.pack("<QQ", 2, 2**60) + b"{}"),
        _framed(b"nonsense", 0),
        _framed(b"[]", 0),
        _framed(b'{"said": 1, "arrays": []}', 0),
        _framed(b'{"said": {}, "arrays": [["a", "object", [1]]]}', 8, bytes(8)),
        _framed(b'{"said": {}, "arrays": [["a", "float32", [2]]]}', 4, bytes(4)),
        _framed(b'{"said": {}, "arrays": [["a", "float32", [-1]], ["b", "int8", [12]]]}', 8, bytes(8)),
        _framed(b'{"said": {}, "arrays": [["a", "float32", [2]]]}', 8, bytes(4)),
        _framed(b"[" * 100_000, 0),
    ],
)
def test_what_is_no_message_is_refused(stream: io.BytesIO) -> None:
    with pytest.raises(Garbled):
        receive(stream, 1 << 20)


def test_objects_are_never_sent() -> None:
    with pytest.raises(Garbled, match="object"):
        send(io.BytesIO(), Message({}, {"a": np.array([{}])}))
