"""Metrics and the learning-rate schedule against what InteractReID's official code computed."""

import re

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from reidlib.config import Config
from reidlib.evaluation import rank
from reidlib.tests.golden_arrays import arrays
from reidlib.training.schedules import schedule


@pytest.mark.parametrize("prefix", ["metric", "metric_excl"])
def test_metrics(prefix):
    golden = arrays("interactreid")
    query, gallery = (normalize(golden[f"in/metric_{side}"], dim=1) for side in ("query", "gallery"))
    sources = ()
    if prefix == "metric_excl":
        sources = (golden["in/metric_query_camid"], golden["in/metric_gallery_camid"])
    ranks = rank(query, gallery, golden["in/metric_query_pid"], golden["in/metric_gallery_pid"], *sources)
    found = ranks.summary(unanswerable="miss")
    expected = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "mAP": "mAP", "mINP": "mINP"}
    for ours, theirs in expected.items():
        assert found[ours] == pytest.approx(golden[f"out/{prefix}_{theirs}"].item(), abs=1e-4)


def test_schedule():
    golden = arrays("interactreid")
    name = next(name for name in golden if name.startswith("out/lr_schedule"))
    lr, start, end, epochs, warm_up, steps = re.search(
        r"lr_schedule_lr(.+)_start(.+)_end(.+)_epoch(\d+)_warmup(\d+)_iters(\d+)", name
    ).groups()
    lr = float(lr)
    config = Config(
        epochs=int(epochs),
        warmup_epochs=float(warm_up),
        warmup_from=float(start) / lr,
        warmup_shape="linspace",
        end_factor=float(end) / lr,
    )
    factor = schedule(config, int(steps))
    ours = torch.tensor([lr * factor(step) for step in range(len(golden[name]))], dtype=torch.float64)
    np.testing.assert_allclose(ours, golden[name], rtol=1e-4)
