"""Labels joined by union-find."""

from __future__ import annotations

import numpy as np

from deploy.graph.labels import ANY, FIXED, Labels, compact, varying


def test_what_is_merged_has_one_root():
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    merged = labels.merge(a.reshape(1, 3), b.reshape(1, 3))
    assert merged.tolist() == [[1, 2, 3]]
    assert labels.roots(b).tolist() == [1, 2, 3]


def test_what_has_no_label_takes_the_others_and_joins_nothing():
    labels = Labels()
    a = labels.fresh(3)
    merged = labels.merge(np.array([a[0], ANY, ANY]), np.array([ANY, a[1], ANY]))
    assert merged.tolist() == [a[0], a[1], ANY]
    assert labels.roots(a).tolist() == a.tolist()
    assert labels.roots(merged).tolist() == merged.tolist()


def test_what_meets_the_fixed_is_fixed():
    labels = Labels()
    a = labels.fresh(2)
    labels.merge(a, np.array([FIXED]))
    assert labels.roots(a).tolist() == [FIXED, FIXED]


def test_tied_axes_have_one_label_for_all():
    labels = Labels()
    a = labels.fresh(6).reshape(2, 3)
    assert labels.tie(a, [0]).shape == (1, 3)
    assert labels.roots(a).tolist() == [[1, 2, 3], [1, 2, 3]]


def test_tying_looks_past_what_has_no_label():
    labels = Labels()
    one, other = labels.fresh(2)
    tied = labels.tie(np.array([[ANY], [one], [ANY], [other]]), [0])
    assert labels.root(int(one)) == labels.root(int(other))
    assert tied.tolist() == [[one]]


def test_compact_arrays_vary_along_all_their_axes():
    ids = np.broadcast_to(np.arange(4).reshape(1, 4, 1), (2, 4, 3))
    assert compact(ids).shape == (1, 4, 1)
    assert varying(compact(ids)) == [1]
