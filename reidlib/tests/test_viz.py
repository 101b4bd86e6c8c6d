import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from reidlib import viz
from reidlib.viz import attention, rankings, style

matplotlib.use("Agg")

LONG = "The woman is wearing a long dark green coat with white buttons and carries a brown handbag. " * 6


def people(count, height=40, width=20):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def ranking(count, correct=(1,)):
    return people(count), [i in correct for i in range(count)], np.linspace(0.9, 0.1, count)


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def places(figure):
    """The axes that hold a ranked picture: those with a picture and a rank as their title."""
    return [axes for axes in figure.findobj(matplotlib.axes.Axes) if axes.images and axes.get_title() != "query"]


def frame(axes):
    return to_hex(axes.spines["left"].get_edgecolor())


def overlaps(figure):
    """Pairs of texts whose boxes meet, and texts that leave the figure; numbers on axes are matplotlib's to place."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, whole = canvas.get_renderer(), figure.bbox
    boxes, ticks = [], {label for axis in figure.findobj(matplotlib.axis.Axis) for label in axis.get_ticklabels()}
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text().strip() and text not in ticks:
            box = text.get_window_extent(renderer)
            boxes.append((text.get_text(), box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1))
    outside = [b[0] for b in boxes if b[1] < -2 or b[2] < -2 or b[3] > whole.width + 2 or b[4] > whole.height + 2]
    meeting = [
        (a[0], b[0])
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]
    return outside + meeting


def test_pictures_come_as_arrays_tensors_pil_and_paths(tmp_path):
    array = people(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for picture in (array, tensor, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert (style.pixels(picture) == array).all()
    assert style.pixels(array[..., 0]).shape == (40, 20, 3)


def test_wrapped_text_keeps_to_its_lines_and_says_that_it_goes_on():
    text = style.wrapped(LONG, 30, 4)
    assert len(text.split("\n")) == 4 and max(map(len, text.split("\n"))) <= 30 and text.endswith("…")
    assert style.wrapped("a short one", 30, 4) == "a short one"


def test_all_figures_have_one_style_and_none_stays_open():
    opened = plt.get_fignums()
    viz.recall_curves({"CLIP": [10, 20, 30]})
    assert plt.get_fignums() == opened
    now = dict(matplotlib.rcParams)
    with plt.rc_context(style.STYLE):
        assert dict(matplotlib.rcParams) == now, "the import has set it"


def test_contact_sheet_shows_every_picture_with_its_caption():
    figure = viz.contact_sheet(people(11), [f"person {i}" for i in range(10)] + [LONG], columns=4, title="People")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(figure.axes) == 12 and len(shown) == 11 and all(axes.images for axes in shown)
    assert [axes.get_xlabel() for axes in shown][:10] == [f"person {i}" for i in range(10)]
    assert "People" in texts(figure) and not overlaps(figure)


def test_ranked_list_marks_right_and_wrong_by_colour_and_by_sign():
    figure = viz.ranked_list(LONG, *ranking(10, correct=(1, 4)), title="Text to picture")
    shown = places(figure)
    assert len(shown) == 10
    for i, axes in enumerate(shown):
        right = i in (1, 4)
        assert frame(axes) == (rankings.RIGHT if right else rankings.WRONG)
        assert axes.get_title() == f"{'✓' if right else '✗'} {i + 1}"
    assert shown[0].get_xlabel() == "0.900" and not overlaps(figure)
    assert any(text.startswith("“The woman") and text.endswith("…”") for text in texts(figure))


def test_ranked_list_without_truth_marks_nothing():
    figure = viz.ranked_list("a man", people(3))
    assert [axes.get_title() for axes in places(figure)] == ["1", "2", "3"]
    assert {frame(axes) for axes in places(figure)} == {rankings.UNKNOWN}


def test_one_far_down_the_ranking_is_set_apart():
    pictures, _, scores = ranking(4)
    row = ("a man", pictures, [False, False, False, True], scores, [1, 2, 3, 1041])
    figure = viz.ranked_lists([row], names=["hard: rank 1,041"])
    assert [axes.get_title() for axes in places(figure)] == ["✗ 1", "✗ 2", "✗ 3", "✓ 1,041"]
    assert [len(axes.texts) for axes in places(figure)] == [0, 0, 0, 1] and "hard: rank 1,041" in texts(figure)
    assert not overlaps(figure)


def test_ranked_lists_take_words_pictures_and_both():
    sketch = people(1)[0]
    rows = [("a man", *ranking(10)), (sketch, *ranking(10)), ((sketch, "in a red coat"), *ranking(4))]
    figure = viz.ranked_lists(rows, title="Three queries")
    drawn = [axes for axes in figure.findobj(matplotlib.axes.Axes) if axes.get_title() == "query"]
    assert len(places(figure)) == 24 and len(drawn) == 2 and not overlaps(figure)
    assert {"“a man”", "“in a red coat”", "Three queries"} <= set(texts(figure))


def test_compare_methods_names_each_and_says_where_the_first_right_one_is():
    found = {"CLIP": ranking(8, (5,)), "A method with quite a long name": ranking(8, ())}
    figure = viz.compare_methods((people(1)[0], LONG), found, title="Compared")
    joined = " ".join(text.replace("\n", " ") for text in texts(figure))
    assert "CLIP" in joined and "quite a long name" in joined
    assert "first right one at rank 6" in joined and "none right among the first 8" in joined
    assert len(places(figure)) == 16 and not overlaps(figure)


@pytest.mark.parametrize("shape", [(40, 20), (20, 20), (60, 20)])
def test_dialogue_ranking_unrolls_turn_by_turn(shape):
    turns = [("What is on the head?", "A hat."), (LONG, LONG)]
    found = [(people(10, *shape), [False] * 10, None), (people(10, *shape), [True] + [False] * 9, None)]
    figure = viz.dialogue_ranking(turns, found, ranks=[1234, 1], title="A dialogue")
    assert {"Turn 1", "Turn 2", "first right one at rank 1,234", "first right one at rank 1"} <= set(texts(figure))
    assert len(places(figure)) == 20 and not overlaps(figure)
    assert [frame(axes) for axes in places(figure)].count(rankings.RIGHT) == 1


def log(epochs):
    measured = {"t2i R@1": 40.0, "t2i R@5": 60.0, "t2i mAP": 35.0}
    return [
        {"epoch": e, "itc": 2 / e, "id": 1 / e, "loss": 3 / e, "lr": 1e-5, "seconds": 1.0, "images_per_second": 9.0}
        | measured
        | {"best": e == 3}
        for e in range(1, epochs + 1)
    ]


def test_training_curves_split_losses_from_measures():
    figure = viz.training_curves(log(5), title="CFFA")
    losses, measured = figure.axes
    assert [line.get_label() for line in losses.lines] == ["itc", "id", "sum"]
    assert [line.get_label() for line in measured.lines] == ["t2i R@1", "t2i mAP", "best, epoch 3"]
    assert losses.lines[2].get_ydata().tolist() == [3 / e for e in range(1, 6)]
    assert losses.get_xlabel() == "epoch" and measured.get_ylabel() == "percent" and not overlaps(figure)


def test_training_curves_of_one_epoch_of_one_loss():
    figure = viz.training_curves([{"epoch": 1, "itc": 2.0, "loss": 2.0, "lr": 1e-5}])
    assert len(figure.axes) == 1 and [line.get_label() for line in figure.axes[0].lines] == ["itc"]


def test_recall_and_round_curves_draw_what_they_are_given():
    axes = viz.recall_curves({"CLIP": [10, 20, 30], "CFine": [40, 50, 60]}).axes[0]
    assert [line.get_label() for line in axes.lines] == ["CLIP (R@1 10.0 %)", "CFine (R@1 40.0 %)"]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3] and axes.lines[1].get_ydata()[2] == 60

    axes = viz.round_curves({"DiaNA": ([30, 40, 45], [28, 37, 41], [32, 43, 49])}).axes[0]
    band = axes.collections[0].get_paths()[0].vertices
    assert axes.lines[0].get_ydata().tolist() == [30, 40, 45] and (band[:, 1].min(), band[:, 1].max()) == (28, 49)
    assert to_hex(axes.collections[0].get_facecolor()[0]) == to_hex(axes.lines[0].get_color())


def test_no_more_than_six_lines_are_drawn():
    axes = viz.recall_curves({f"method {i}": [i, i + 1] for i in range(9)}, title="Recall").axes[0]
    assert len(axes.lines) == 6 and axes.get_title() == "Recall (6 of 9)"


def test_forest_colours_differences_whose_interval_leaves_out_zero():
    rows = [("CFFA", 3.0, 1.0, 5.0), ("CFine", -0.04, -1.0, 1.0), ("DiaNA", -4.0, -6.0, -2.0)]
    figure = viz.forest(rows, "CLIP fine-tuned")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["CFFA", "CFine", "DiaNA"]
    assert axes.get_ylim() == (2.5, -0.5), "the first on top"
    assert [line.get_color() for line in axes.lines[:6:2]] == ["C2", "#888888", "C1"]
    assert [text.get_text() for text in axes.texts] == ["+3.0", "+0.0", "-4.0"] and not overlaps(figure)


def test_attention_is_shown_as_shares_over_the_whole_picture():
    weights = torch.arange(1.0, 25).view(6, 4)
    figure = viz.attention_on_picture(people(1)[0], weights)
    heat = figure.axes[1].images[1]
    assert float(heat.get_array().sum()) == pytest.approx(100) and heat.get_array().shape == (6, 4)
    assert list(heat.get_extent()) == [-0.5, 19.5, 39.5, -0.5] and not overlaps(figure)
    assert any("percent" in text for text in texts(figure))


def test_selected_patches_frame_the_chosen_and_number_the_best():
    figure = viz.selected_patches(people(1)[0], (8, 4), [0, 5, 31, 2], [0.1, 0.9, 0.5, 0.2], groups=[1, 1, 2, 2])
    axes = figure.axes[1]
    boxes = [patch.get_bbox() for patch in axes.patches]  # best first; patches are 5 x 5 pixels
    assert [(box.x0, box.y0) for box in boxes] == [
        pytest.approx((x + 0.3, y + 0.3)) for x, y in ((4.5, 4.5), (14.5, 34.5), (9.5, -0.5), (-0.5, -0.5))
    ]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == [attention.GROUPS[i] for i in (0, 1, 1, 0)]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"] and "0.9, 0.5, 0.2" in axes.get_xlabel()
    shade = axes.images[1].get_array()[..., 3]
    assert shade[0, 0] == 0 and shade[1, 0] == pytest.approx(0.72) and axes.get_title() == "4 of 32 patches"
    assert not overlaps(figure)


def test_patches_and_words_number_patches_as_one_reads():
    cosines = [[0.1, -0.2], [0.3, 0.5]]
    left, right, _ = (figure := viz.patches_and_words(people(1)[0], (8, 4), [9, 2], ["red", "coat"], cosines)).axes
    assert [text.get_text() for text in left.texts] == ["1", "2"] and left.texts[0].get_position()[1] == 2
    np.testing.assert_allclose(right.images[0].get_array(), [[0.3, 0.5], [0.1, -0.2]])
    assert right.lines[0].get_xdata().tolist() == [1, 0] and not overlaps(figure)
    assert [label.get_text() for label in right.get_xticklabels()] == ["red", "coat"]


def test_loss_forces_point_against_the_gradient():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    figure = viz.loss_forces({"distance": lambda a, b: (a - b).square().sum()}, first, second, [0, 1])
    arrows = [item for item in figure.axes[0].collections if hasattr(item, "U")]
    assert figure.axes[0].get_title() == "distance = 2.00"
    np.testing.assert_allclose([arrows[0].U, arrows[0].V], [[-0.7, 0.0], [0.0, 0.7]], atol=1e-6)
    np.testing.assert_allclose([arrows[1].U, arrows[1].V], [[0.7, 0.0], [0.0, -0.7]], atol=1e-6)


def test_words_wrap_and_darken_with_their_weight():
    tokens = (LONG[:400] + " $5 and $6").split()
    weights = np.ones(len(tokens))
    weights[3], weights[5] = 5, 0
    figure = viz.words(tokens, weights)
    shown = [text for text in figure.texts if text.get_bbox_patch()]
    assert [text.get_text() for text in shown] == tokens and not overlaps(figure)
    darkness = [sum(text.get_bbox_patch().get_facecolor()[:3]) for text in shown]
    assert np.argmin(darkness) == 3 and darkness[5] == 3 and len({text.get_position()[1] for text in shown}) > 1


def test_hardest_attributes_are_mean_ranks_with_the_hardest_on_top():
    known = [{"hat": "cap", "bag_colour": "red"}] * 2 + [{"hat": "none", "bag_colour": "red"}] * 3 + [{"hat": "hat"}]
    axes = viz.hardest_attributes([1, 3, 6, 8, 10, 99], known, least=2).axes[0]
    bars = dict(zip([label.get_text() for label in axes.get_yticklabels()], axes.patches, strict=True))
    lengths = {name: bar.get_width() for name, bar in bars.items()}
    assert lengths == {"hat: cap (2)": 2, "bag colour: red (5)": 5.6, "hat: none (3)": 8}
    assert list(lengths) == sorted(lengths, key=lengths.get)  # drawn upwards
    assert axes.lines[0].get_xdata()[0] == pytest.approx(127 / 6)


def test_embedding_map_finds_the_main_axes_and_colours_by_value():
    generator = torch.Generator().manual_seed(0)
    labels = ["red", "none", "backpack"] * 30
    embeddings = torch.randn(90, 16, generator=generator) * 0.1
    embeddings[:, 4] += torch.tensor([0.0, 5, 10] * 30)
    state = torch.random.get_rng_state()
    figure = viz.embedding_map(embeddings, labels, "bag")
    assert torch.equal(state, torch.random.get_rng_state())
    axes = figure.axes[0]
    clouds = dict(zip(("backpack", "none", "red"), axes.collections, strict=True))
    assert to_hex(clouds["red"].get_facecolor()[0]) == "#ff0000" and clouds["none"].get_facecolor()[0, 3] == 1
    centres = {name: cloud.get_offsets()[:, 0].mean() for name, cloud in clouds.items()}
    assert abs(abs(centres["red"] - centres["backpack"]) - 10) < 0.3 and abs(centres["none"]) < 0.2
    assert "99 % of the variance" in axes.get_xlabel() and not overlaps(figure)
