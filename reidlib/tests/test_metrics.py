"""Ranking and its metrics: worked by hand, against a full sort, against scikit-learn."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reidlib.errors import ReidError
from reidlib.evaluation import metrics
from reidlib.evaluation.metrics import Ranks, bootstrap_interval, paired_test, rank, versus


def scored(rows):
    """Embeddings whose inner products are exactly `rows` (Q, G)."""
    return torch.tensor(rows, dtype=torch.float32), torch.eye(len(rows[0]))


def test_by_hand():
    # Right pictures at ranks 1 and 4: AP = (1/1 + 2/4) / 2, INP = 2/4. At rank 2 alone: AP = 1/2, INP = 1/2.
    queries, gallery = scored([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]])
    ranks = rank(queries, gallery, torch.tensor([1, 2]), torch.tensor([1, 2, 3, 1]))
    assert ranks.first.tolist() == [1, 2]
    assert ranks.average_precision.tolist() == [0.75, 0.5]
    assert ranks.inverse_negative_penalty.tolist() == [0.5, 0.5]
    summary = ranks.summary(ks=(1, 2))
    assert summary["R@1"] == 50 and summary["R@2"] == 100
    assert summary["mAP"] == 62.5 and summary["MFR"] == 1.5 and summary["MFR0"] == 0.5


def test_source_is_left_out():
    queries, gallery = scored([[0.9, 0.8, 0.7]])
    pids = torch.tensor([1, 2, 1])
    assert rank(queries, gallery, torch.tensor([1]), pids).first.tolist() == [1]
    left_out = rank(queries, gallery, torch.tensor([1]), pids, torch.tensor([0]), torch.arange(3))
    assert left_out.first.tolist() == [2]


def test_unanswerable_queries_are_reported_apart():
    queries, gallery = scored([[0.9, 0.1], [0.9, 0.1]])
    ranks = rank(queries, gallery, torch.tensor([1, 5]), torch.tensor([1, 2]))
    assert ranks.summary()["queries_without_positive"] == 1
    assert ranks.summary()["R@1"] == 100
    assert ranks.summary(unanswerable="miss")["R@1"] == 50
    with pytest.raises(ReidError, match="nothing to measure"):
        rank(queries, gallery, torch.tensor([5, 5]), torch.tensor([1, 2])).summary()


def test_ties_count_against_the_method():
    queries, gallery = scored([[0.5, 0.5, 0.5, 0.5]])
    ranks = rank(queries, gallery, torch.tensor([1]), torch.tensor([1, 2, 3, 1]))
    assert ranks.first.tolist() == [3]
    assert ranks.average_precision.tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6))
def test_against_a_full_sort(seed, n_queries, n_gallery, n_people):
    rng = np.random.default_rng(seed)
    similarity = rng.permuted(np.tile(np.linspace(-1, 1, n_gallery), (n_queries, 1)), axis=1)
    query_pids, gallery_pids = rng.integers(0, n_people, n_queries), rng.integers(0, n_people, n_gallery)
    queries, gallery = scored(similarity.tolist())
    old = metrics.QUERY_BLOCK, metrics.GALLERY_BLOCK
    metrics.QUERY_BLOCK, metrics.GALLERY_BLOCK = int(rng.integers(1, 5)), int(rng.integers(1, 50))
    try:
        ranks = rank(queries, gallery, torch.tensor(query_pids), torch.tensor(gallery_pids))
    finally:
        metrics.QUERY_BLOCK, metrics.GALLERY_BLOCK = old
    for query in range(n_queries):
        right = (gallery_pids == query_pids[query])[np.argsort(-similarity[query], kind="stable")]
        places = np.flatnonzero(right) + 1
        if not len(places):
            assert ranks.first[query] == 0
            continue
        assert ranks.first[query] == places[0]
        assert ranks.inverse_negative_penalty[query] == pytest.approx(len(places) / places[-1], rel=1e-6)
        sklearn = average_precision_score(gallery_pids == query_pids[query], similarity[query])
        assert ranks.average_precision[query] == pytest.approx(sklearn, rel=1e-6)


def test_broken_embeddings_are_refused():
    with pytest.raises(ReidError, match="not finite"):
        rank(torch.tensor([[float("nan")]]), torch.ones(1, 1), torch.tensor([1]), torch.tensor([1]))


@pytest.mark.parametrize("measure", [bootstrap_interval, lambda values: paired_test(values, values.mean())])
def test_memory_of_a_test_does_not_grow_with_the_queries(measure):
    """Of CUHK-PEDES' 6,156 queries; all draws at once took 985 MB in the paired test, 197 MB in the interval."""
    values = np.random.default_rng(0).random(6_156)
    tracemalloc.start()
    try:
        measure(values)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_draws_are_the_same_in_shares(monkeypatch):
    a, b = np.random.default_rng(0).random((2, 50))
    at_once = bootstrap_interval(a), paired_test(a, b)
    monkeypatch.setattr(metrics, "DRAWN", 70)
    assert bootstrap_interval(a) == pytest.approx(at_once[0]) and paired_test(a, b) == at_once[1]


def test_two_ways_of_searching_in_words():
    precision = np.random.default_rng(0).random(300) / 2
    ranks = {gain: Ranks(np.ones(300), precision + gain, precision) for gain in (0.0, 0.3)}
    ranks[0.0].first[0] = 0  # a query without a right picture counts for neither
    assert versus(ranks[0.3], ranks[0.0]).endswith("(p < 0.001)")
    assert versus(ranks[0.0], ranks[0.0]).endswith("(p = 1.000, which chance explains, too)")


def test_bootstrap_and_paired_test():
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.1, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert paired_test(values, values) == 1
    assert paired_test(values + 0.1, values) < 0.001
    assert paired_test(rng.normal(size=400), rng.normal(size=400)) > 0.01
