"""Split and unbound tensors stay what they were when the sequences are gone."""

import onnx_ir as ir
import pytest

from deploy.graph import clean, sequences, shapes

X = "g (float[n,6,4] x) => (float[n,a,4] y)"


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "body",
    [
        "<int64 s={4}, int64 i={0}, int64 j={1}> "
        "{ q = SplitToSequence<axis=1>(x, s) a = SequenceAt(q, i) b = SequenceAt(q, j) "
        "y = Concat<axis=1>(b, a) }",
        "<int64[3] s={1,2,3}, int64 i={-1}> { q = SplitToSequence<axis=-2>(x, s) y = SequenceAt(q, i) }",
        "<int64 i={5}> { q = SplitToSequence<axis=1>(x) a = SequenceAt(q, i) y = Exp(a) }",
        "<int64 i={2}, int64[1] z={1}> "
        "{ q = SplitToSequence<axis=1, keepdims=0>(x) a = SequenceAt(q, i) y = Unsqueeze(a, z) }",
        "<int64 s={3}, int64 i={0}, int64 j={1}> { q = SplitToSequence<axis=1>(x, s) a = SequenceAt(q, i) "
        "b = SequenceAt(q, j) c = SequenceAt(q, i) d = Add(a, b) y = Add(d, c) }",
    ],
)
def test_parts_become_outputs_of_a_split(parse, prove, body: str):
    model = shapes.infer(parse(f"{X} {body}"))
    after = model.clone()
    assert sequences.split_sequences(after) == 1
    assert not {"SplitToSequence", "SequenceAt"} & set(ops(after))
    assert [v.name for v in after.graph.outputs] == ["y"]
    assert prove(parse(f"{X} {body}"), after) is None
    assert sequences.split_sequences(after) == 0


@pytest.mark.parametrize(
    "body",
    [
        "{ q = SplitToSequence<axis=1>(x) y = ConcatFromSequence<axis=1>(q) }",
        "<int64 s={1}, int64 i={0}> { q = SplitToSequence<axis=0>(x, s) y = SequenceAt(q, i) }",
        "<int64 i={0}> "
        "{ q = SplitToSequence<axis=1>(x) l = SequenceLength(q) o = Sub(l, l) y = SequenceAt(q, o) }",
    ],
    ids=["read as a whole", "of unknown size", "a part of unknown number"],
)
def test_left_alone(parse, body: str):
    model = shapes.infer(parse(f"{X} {body}"))
    assert sequences.split_sequences(model) == 0


def test_cleaning_leaves_a_split(parse, prove):
    text = (
        "g (float[n,6,4] x) => (float[n,3,4] y, float[n,3,4] z) <int64 s={3}, int64 i={0}, int64 j={1}> "
        "{ q = SplitToSequence<axis=1>(x, s) a = SequenceAt(q, i) y = Exp(a) z = SequenceAt(q, j) }"
    )
    result = clean.clean(parse(text), lambda before, after: prove(parse(text), after))
    assert ops(result.model) == ["Split", "Exp"]
    assert all(r.kept for r in result.rewrites)
