"""The measuring itself: that bytes, operations, pairs and turns are counted right. No test looks at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reidlib import benchmarks, cli
from reidlib.benchmarks import (
    METHODS,
    TIMED,
    LiveMemory,
    Unfilled,
    _operations,
    alternate,
    arithmetic,
    bare_loss,
    batch,
    build,
    clustered,
    costs,
    encoding,
    evaluation,
    machine,
    memory,
    one_by_one,
    operations_of_a_picture,
    optimizer_of,
    paired_ratio,
    parts,
    pictures,
    searches,
    step_memory,
    steps,
    train_step,
    without_contents,
)
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.evaluation import metrics
from reidlib.methods.cffa import CFFAConfig, Reasoning
from reidlib.retrieval import GalleryIndex, cluster
from reidlib.tests.attribute_model import AttributeModel


def test_live_memory_counts_what_is_alive_and_what_was_at_most():
    outside = torch.zeros(100)
    with LiveMemory() as live:
        kept = torch.ones(250)  # 1000 bytes
        view = kept[:10].view(2, 5)
        outside.add_(1)
        assert live.now == 1000
        gone = kept + kept
        assert live.now == 2000
        del gone
        assert live.now == 1000 and live.peak == 2000
        del kept
        assert live.now == 1000, "a view keeps its storage alive"
        del view
        assert live.now == 0


def test_what_a_forward_pass_keeps_equals_a_count_by_hand():
    layers = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
    given = torch.randn(7, 10)
    with LiveMemory() as live:
        out = layers(given).sum()
        assert live.now == 4 * (7 * 20 + 1)  # the ReLU's output, kept by itself and the layer after it; and the sum
        out.backward()
        del out
        assert live.now == 4 * (10 * 20 + 20 * 5)  # the gradients


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_estimate_without_contents_equals_a_real_step(name, checkpointed):
    settings = {"checkpoint_activations": checkpointed, "precision": "fp32"}
    real = build(name, "toy", **settings)
    made = batch(real, 4)
    shapes = without_contents(build(name, "toy", **settings))
    torch.manual_seed(0)  # hides the same words in both
    expected = step_memory(real, made)
    torch.manual_seed(0)
    assert step_memory(shapes, made) == expected
    assert expected["weights"] == sum(t.nbytes for t in [*real.parameters(), *real.buffers()])
    assert expected["peak"] > expected["weights"] + expected["gradients"] + expected["optimiser"]


def test_the_estimate_keeps_all_that_autograd_saves():
    model = build("clip", "toy", precision="fp32").train()
    made, saved = batch(model, 4), {}
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), *_tensors(made)]}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = sum(model.losses(made).values())
    expected = sum(size for pointer, size in saved.items() if pointer not in own)
    total.backward()
    assert step_memory(model, made)["kept"] == pytest.approx(expected, rel=0.01)  # beside it a few scalars and masks


def _tensors(made):
    return [value for value in made.values() if isinstance(value, torch.Tensor)]


def test_memory_grows_with_the_batch_and_shrinks_with_checkpoints():
    rows = memory("toy", ["clip"], (4, 8))
    assert [(row["batch"], row["checkpoint_activations"]) for row in rows] == [
        (4, False),
        (8, False),
        (4, True),
        (8, True),
    ]
    small, large, less, _ = (row["peak"] for row in rows)
    assert less < small < large


@pytest.mark.parametrize("name", METHODS)
def test_the_bare_step_trains_the_towers_of_the_method_and_nothing_else(name):
    model = build(name, "toy").train()
    made = batch(model, 4)
    sum(model.losses(made).values()).backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    bare_loss(model, made).backward()
    bare = {key for key, p in model.named_parameters() if p.grad is not None}
    assert any("visual" in key for key in bare)
    assert bare <= trained
    head = ("head.", "refiner.", "mapping.")
    assert not any(key.startswith(head) for key in bare)
    if name in ("cfine", "cffa", "diana", "interactreid"):
        assert any(key.startswith(head) for key in trained)


def test_of_clip_the_bare_step_is_the_step():
    [row] = arithmetic("toy", ["clip"], batch_size=2)
    assert row["ratio"] == 1


def test_operations_are_counted_as_by_hand():
    [one], [two] = (arithmetic("toy", ["clip"], batch_size=size) for size in (2, 4))
    similarities = lambda size: 3 * 2 * size * size * 96  # one product forward and two backward  # noqa: E731
    towers = [row["bare"] * 1e12 - similarities(size) for row, size in ((one, 2), (two, 4))]
    assert towers[1] == pytest.approx(2 * towers[0], rel=1e-9)


def test_no_truncated_normal_is_waited_for_whatever_the_memory_held_before():
    with Unfilled():
        left = nn.init.trunc_normal_(torch.full((4,), 5.0), std=0.02)
    assert left.tolist() == [5.0] * 4


def test_words_are_guessed_with_a_third_of_the_products_of_guessing_at_every_token():
    """At the published sizes, with four hidden words a caption. What is left is the blocks before the last one."""
    config = CFFAConfig.paper()
    with Unfilled():
        reasoning = without_contents(Reasoning(512, config.heads, config.mlm_layers, 49_408))
    text, image = torch.randn(8, 77, 512), torch.randn(8, 193, 512)
    labels = torch.zeros(8, 77, dtype=torch.long)
    labels[:, 3:7] = 5
    everything = torch.arange(77).expand(8, -1)

    whole = _operations(lambda: reasoning.mlm_head(reasoning.fuse(text, image, everything)).mean())
    ours = _operations(lambda: reasoning(text, image, labels))
    blocks = reasoning.cross_modal_transformer.resblocks[:-1]
    before = _operations(lambda: nn.Sequential(*blocks)(text.clone().requires_grad_()).mean())
    assert whole > 3 * ours and ours < 1.4 * before


def test_a_step_changes_the_weights_and_leaves_no_gradient():
    model = build("clip", "toy")
    before = model.clip.model.visual.proj.detach().clone()
    made = batch(model, 2)
    train_step(model, optimizer_of(model), lambda: bare_loss(model, made))
    assert not torch.equal(model.clip.model.visual.proj, before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["clip", "omni"])
def test_steps_give_a_row_a_method(name):
    [row] = steps("toy", [name], repeats=1, batch_size=2)
    assert row["method"] == name and row["batch"] == 2
    assert row["images_per_second"] == pytest.approx(2e3 / row["step_ms"])


@pytest.mark.parametrize("name", TIMED)
def test_the_parts_of_a_step_have_names(name):
    step, bare = parts("toy", [name], repeats=1, batch_size=2)
    assert (step["run"], bare["run"]) == ("step", "bare") and step["batch"] == bare["batch"] == 2
    for row in (step, bare):
        assert {"image tower", "text tower", "losses", "backward", "optimiser"} <= row.keys()
        assert all(row[part] > 0 for part in row.keys() - {"method", "preset", "batch", "text_length", "run"})
    own = {"cfine": "head", "cffa": "head", "interactreid": "mapping", "diana": "refiner"}
    assert own.get(name, "losses") in step and own.get(name, "") not in bare


def test_runs_take_turns_and_warm_ups_are_left_out():
    order = []
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2, warm_up=1)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert paired_ratio({"a": [2.0, 9.0, 3.0], "b": [1.0, 1.0, 3.0]}, "a", "b") == 2.0
    assert machine()["threads"] == torch.get_num_threads()


def test_memory_of_ranking_does_not_grow_with_the_gallery(monkeypatch):
    monkeypatch.setattr(metrics, "GALLERY_BLOCK", 256)
    monkeypatch.setattr(benchmarks, "WIDTH", 64)
    few, many = evaluation((4 * 256, 40 * 256), queries=8)
    assert few["pictures"] == 1024 and few["queries"] == 8
    assert many["extra_mb"] == pytest.approx(few["extra_mb"], rel=0.1)


def test_clustered_embeddings_find_their_own_cluster():
    gallery, asked = clustered(300, 64, 20)
    np.testing.assert_allclose(np.linalg.norm(gallery, axis=1), 1, rtol=1e-5)
    found = GalleryIndex(gallery, [{}] * 300).search(asked, 10)[1] % 30  # thirty people, in turn
    assert (found == found[:, :1]).float().mean() > 0.9


def test_a_search_is_measured_in_every_way_there_is():
    [row] = searches((200,), width=8, queries=3, k=2)
    assert row["pictures"] == 200 and {"exact_ms", "read_ms", "ratio"} <= row.keys()


def test_a_store_is_measured_beside_the_exact_search():
    pytest.importorskip("lancedb")
    [row] = searches((2_000,), width=8, queries=3, k=2)
    assert 0.5 < row["recall"] <= 1 and row["disk_mb"] > 1e-6 * 2_000 * 8 * 4
    assert not Path("/proc/self/status").exists() or 0 < row["search_mb"] < 500


def test_encoding_is_measured_beside_the_bare_model(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(cluster, "ROWS", 8)
    bare, alone = encoding(count=32, workers=(0,), model=AttributeModel)
    assert bare["of_bare"] == 1 and alone["of_bare"] == alone["pictures_per_second"] / bare["pictures_per_second"]
    assert alone["start_s"] > 0 and 0 < alone["pictures_per_second"] < bare["pictures_per_second"]


def test_costs_are_those_of_the_formulas():
    found = costs(100_000_000, speed=1_000, width=512, picture_bytes=5_000)
    assert found["gpu_hours"] == pytest.approx(27.8, abs=0.1) and found["pictures_gb"] == 500
    assert (found["embeddings_gb"], found["index_gb"]) == (204.8, 12.8)
    assert found["embeddings_gb"] < found["store_gb"] < 1.2 * found["embeddings_gb"]
    small, large = operations_of_a_picture("toy"), operations_of_a_picture("paper")
    assert 20e9 < large < 25e9 and small < 1e9  # a ViT-B/16 of 193 tokens: 2 x 86 million weights x 128 to 193


def test_both_ways_of_augmenting_see_the_same_pictures(toy_root):
    data, model = load("toy", toy_root), build("cfine", "toy")
    cache = data_pixels(data, model.image_size)
    torch.manual_seed(0)
    made = torch.stack([one_by_one(model)(image) for image in cache[[0, 1, 2]]])
    assert made.shape == (3, 3, *model.image_size) and made.dtype == torch.float32
    rows = pictures(data, "toy", count=8)
    assert len(rows) == 3 and all(row["pictures_per_second"] > 0 for row in rows)


def test_the_command_writes_its_rows_and_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    assert tuple(benchmarks.MEASUREMENTS) == cli.BENCHMARKS
    monkeypatch.setitem(benchmarks.MEASUREMENTS, "steps", lambda preset: [{"method": "clip", "preset": preset}])
    assert cli.main(["benchmark", "steps", "--preset", "paper"]) == 0
    [file] = tmp_path.glob("*/benchmark.json")
    assert file.parent.name == "benchmark+only=steps+preset=paper"
    written = json.loads(file.read_text())
    assert written["steps"] == [{"method": "clip", "preset": "paper"}] and written["machine"]["cores"]
    assert "method preset" in capsys.readouterr().out
    assert cli.main(["benchmark", "stepz"]) == 2
    assert "stepz" in capsys.readouterr().err


def test_towers_in_onnx_find_the_same_people(toy_root):
    rows = benchmarks.onnx_towers(load("toy", toy_root), repeats=2)
    assert [row["towers"] for row in rows] == ["torch", "onnx", "onnx int8"]
    assert rows[1]["R@1"] == rows[0]["R@1"] and rows[2]["R@1"] == pytest.approx(rows[0]["R@1"], abs=5)
    assert rows[2]["mb"] < rows[1]["mb"] and all(row["ms_query"] > 0 and row["ms_picture"] > 0 for row in rows)
