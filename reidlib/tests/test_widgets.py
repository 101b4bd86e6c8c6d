"""The panels through the callbacks that their buttons call, and the sketch pad through its strokes."""

import csv
import re
import time
from datetime import datetime
from unittest.mock import Mock

import numpy as np
import pytest
import traitlets
from ipywidgets import HTML
from PIL import Image, ImageDraw

from reidlib.errors import ReidError
from reidlib.retrieval import Gallery, GalleryIndex, QuerySession, Question
from reidlib.tests.attribute_model import (
    QUESTIONS,
    AttributeModel,
    TextOnly,
    make_gallery,
    picture,
)
from reidlib.widgets import ChatSearch, SketchPad, SketchSearch
from reidlib.widgets.sketchpad import trace

MARKUP = "<img src=x onerror=alert(1)>&\"'"
LINE = {"points": [[0.1, 0.5], [0.9, 0.5]], "width": 0.05, "ink": 0.87}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def chat(gallery, tmp_path):
    return ChatSearch(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search")


@pytest.fixture
def sketch(gallery, tmp_path):
    return SketchSearch(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search")


def leaves(widget):
    children = getattr(widget, "children", ())
    return [leaf for child in children for leaf in leaves(child)] if children else [widget]


def text_of(panel):
    """Everything a panel shows."""
    return " ".join(f"{getattr(leaf, 'value', '')} {getattr(leaf, 'description', '')}" for leaf in leaves(panel))


# The pad


def test_strokes_become_a_picture_of_any_size():
    pad = SketchPad(strokes=[LINE])
    for width, height in ((64, 128), (128, 256), (100, 100)):
        dark = np.asarray(pad.image((width, height)).convert("L")) < 128
        rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
        assert pad.image((width, height)).size == (width, height)
        assert rows.mean() == pytest.approx(height / 2, abs=2)
        assert len(rows) == pytest.approx(0.05 * width, abs=2)
        assert (columns[0], columns[-1]) == pytest.approx((0.075 * width, 0.925 * width), abs=2)


def test_a_tap_is_a_dot_and_an_empty_pad_is_white():
    pad = SketchPad(strokes=[{"points": [[0.5, 0.5]], "width": 0.1}])
    assert np.asarray(pad.image())[128, 64].max() < 60
    pad.undo()
    assert np.asarray(pad.image()).min() == 255


def test_where_strokes_cross_the_darker_one_shows():
    shade = {"points": [[0.5, 0.1], [0.5, 0.9]], "width": 0.3, "ink": 0.4}
    for strokes in ([LINE, shade], [shade, LINE]):
        grey = np.asarray(SketchPad(strokes=strokes).image().convert("L"))
        assert (grey[128, 64], grey[80, 64], grey[80, 10]) == (33, 153, 255)
    old = {name: value for name, value in LINE.items() if name != "ink"}  # as sessions were saved before shading
    assert SketchPad(strokes=[old]).strokes == [LINE]


def test_a_traced_drawing_looks_like_itself():
    drawing = Image.new("L", (64, 128), 255)
    pen = ImageDraw.Draw(drawing)
    pen.rectangle([20, 40, 40, 80], fill=140)
    pen.line([(10, 20), (50, 20), (50, 100)], fill=30, width=2)
    traced = np.asarray(SketchPad(strokes=trace(drawing)).image((64, 128)).convert("L"), int)
    assert abs(traced[50:70, 24:36] - 140).max() < 10 and traced[20, 12:48].max() < 110 and traced[110:].min() == 255
    assert np.abs(traced - np.asarray(drawing, int)).mean() < 5
    assert trace(Image.new("L", (640, 200), 255)) == []


def test_undo_and_clear_of_the_pad():
    pad = SketchPad(strokes=[LINE, LINE])
    pad.undo()
    assert pad.strokes == [LINE]
    pad.clear()
    pad.undo()
    assert pad.strokes == []


@pytest.mark.parametrize(
    "strokes",
    [[1], [{}], [{"points": [[0]], "width": 1}], [{"points": [[0, "a"]], "width": 1}]]
    + [[{"points": [[0, float("nan")]], "width": 1}], [{"points": 3, "width": 1}]]
    + [[{"points": [[0, 0]], "width": 1, "ink": "dark"}]],
)
def test_what_is_no_stroke_is_refused(strokes):
    with pytest.raises(traitlets.TraitError, match="points"):
        SketchPad(strokes=strokes)


def test_values_outside_are_brought_to_the_edge():
    [stroke] = SketchPad(strokes=[{"points": [[-3, 9]], "width": 7, "ink": 2}]).strokes
    assert stroke == {"points": [[0, 1]], "width": 1, "ink": 1}


# The chat


def test_a_conversation_finds_the_person(chat, gallery):
    person = gallery.index.metadata[12]["attributes"]
    chat.send(f"a {person['hat_colour']} hat")
    for _ in range(4):
        if chat.session.question:
            button = next(b for b in chat.answers.children if b.description == person[chat.session.question.key])
            button.click()
    assert chat.cards[0].row == 12
    assert chat.session.text.count("a ") >= 4
    assert not chat.answers.children  # nothing is left to ask
    assert all(word in chat.bubbles.value for word in QUESTIONS[1].text.split())


def test_the_panel_shows_what_the_session_finds(chat):
    chat.send("a red top")
    for card, (row, path, score) in zip(chat.cards, chat.session.results(12), strict=True):
        assert card.row == row and path in card.view.value and f"{score:.3f}" in card.view.value
    assert chat.session.question.why in text_of(chat)


def test_enter_sends(chat):
    chat.entry.value = "a red top"
    chat.entry._handle_custom_msg({"event": "submit"}, [])
    assert chat.session.history[0] == {"kind": "say", "text": "a red top"} and chat.entry.value == ""


def test_marks_toggle_and_show(chat):
    chat.send("a red top")
    row = chat.cards[2].row
    chat.cards[2].like.click()
    card = next(card for card in chat.cards if card.row == row)
    assert chat.session.marks == {row: "like"} and card.like.button_style == "success"
    card.like.click()
    assert chat.session.marks == {} and card.like.button_style == ""
    row = chat.cards[0].row
    chat.cards[0].dislike.click()
    assert chat.session.marks == {row: "dislike"} and row not in [card.row for card in chat.cards]


def test_undo_and_restart(chat):
    before = text_of(chat)
    chat.send("a red top")
    asked = chat.session.question
    chat.send(asked.answers[0])
    chat.undo()
    assert chat.session.question.key == asked.key and asked.text in chat.bubbles.value
    chat.restart()
    assert text_of(chat) == before


def test_free_text_answers_the_open_question(chat):
    chat.send("a red top")
    chat.send("blue trousers I think")
    assert [event["kind"] for event in chat.session.history] == ["say", "ask", "answer", "ask"]
    assert "blue trousers I think" in chat.session.text


def test_an_error_shows_in_the_panel_and_is_raised(chat, monkeypatch):
    with pytest.raises(ReidError):
        chat.send(" ")
    assert "The sentence is empty" in chat.message.value
    chat.send("a red top")
    assert chat.message.value == ""
    monkeypatch.setattr(chat.session, "like", lambda row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chat.mark(0, "like")
    assert "ZeroDivisionError" in chat.message.value


def test_the_counter_warns_before_text_is_cut(chat):
    chat.entry.value = "red " * 10
    assert "10 of 24 tokens" in chat.counter.value and "reid-warn" not in chat.counter.value
    chat.entry.value = "red " * 40
    assert "reid-warn" in chat.counter.value


def test_save_writes_session_table_and_report(chat, gallery):
    chat.send("a red top")
    chat.cards[1].like.click()
    chat.save()
    rows = list(csv.DictReader((chat.folder / "results.csv").open()))
    assert [row["image"] for row in rows] == [path for _, path, _ in chat.session.results(50)]
    assert [row["mark"] for row in rows].count("like") == 1
    loaded = QuerySession.load(chat.folder / "session.json", AttributeModel(), gallery, QUESTIONS)
    assert loaded.results(10) == chat.session.results(10)
    page = (chat.folder / "report.html").read_text()
    assert page.count("<li><img") == 50 and "Said: a red top" in page and "results.csv" in chat.message.value


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    names = ["=1+1.png", "+1.png", "-1.png", "@sum.png", "plain=.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = -np.arange(1, 6, dtype=np.float32)[:, None].repeat(24, 1)  # the scores are negative numbers, and stay
    gallery = Gallery(GalleryIndex(rows, [{"image": name} for name in names]), tmp_path)
    chat = ChatSearch(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search")
    chat.send("a red top")
    chat.save()
    rows = list(csv.DictReader((chat.folder / "results.csv").open()))
    assert [row["image"] for row in rows] == ["'=1+1.png", "'+1.png", "'-1.png", "'@sum.png", "plain=.png"]
    assert all(float(row["score"]) < 0 for row in rows)


def test_markup_is_text_everywhere(tmp_path, monkeypatch):
    name = "<b onclick=x>/<script>alert(1)&'.png"
    (tmp_path / "<b onclick=x>").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    gallery = Gallery(GalleryIndex(np.ones((1, 24), np.float32), [{"image": name}]), tmp_path)
    asked = Question("<i>", MARKUP, (f"x{MARKUP}", "b"), (MARKUP, "b"))
    chat = ChatSearch(QuerySession(AttributeModel(), gallery, [asked]), folder=tmp_path / "<u>")
    chat.send(MARKUP)
    chat.mark(0, "like")
    chat.send(chat.answers.children[0].description)
    chat.save()
    shown = " ".join(widget.value for widget in leaves(chat) if isinstance(widget, HTML))
    page = (chat.folder / "report.html").read_text()
    for text in (shown, page):
        assert "&lt;img src=x onerror" in text and "&lt;script&gt;" in text
        assert not re.search(r"<script|<img src=x|<b onclick|<u>|<i>", text)
    monkeypatch.setattr(chat.session, "undo", Mock(side_effect=ReidError(MARKUP)))
    with pytest.raises(ReidError):
        chat.undo()
    assert "&lt;img" in chat.message.value and "<img" not in chat.message.value


def test_a_method_without_text_cannot_chat(gallery):
    model = AttributeModel()
    model.reads = ("sketch",)
    with pytest.raises(ReidError, match="cannot read a text"):
        ChatSearch(QuerySession(model, gallery))
    with pytest.raises(ReidError, match="cannot read a sketch"):
        SketchSearch(QuerySession(TextOnly(), gallery))


# The sketch


def blocks(person):
    """A drawing that the model takes for this person: the pad's lines are dark, so only black can be drawn."""
    rows = {"hat_colour": 0.12, "top_colour": 0.37, "trousers_colour": 0.65, "shoes_colour": 0.9}
    return [{"points": [[0, rows[key]], [1, rows[key]]], "width": 0.5} for key, c in person.items() if c == "black"]


def test_strokes_change_the_ranking(sketch, gallery):
    sketch.pad.strokes = [LINE]
    assert sketch.session.strokes == [LINE]
    assert sketch.session.sketch.tobytes() == sketch.pad.image().tobytes()
    assert [card.row for card in sketch.cards] == [row for row, _, _ in sketch.session.results(12)]
    dressed = next(m["attributes"] for m in gallery.index.metadata if "black" in m["attributes"].values())
    sketch.pad.strokes = blocks(dressed)
    wanted = {key for key, colour in dressed.items() if colour == "black"}
    assert wanted <= {k for k, c in gallery.index.metadata[sketch.cards[0].row]["attributes"].items() if c == "black"}


def test_undo_brings_the_strokes_back(sketch):
    sketch.pad.strokes = [LINE]
    sketch.pad.strokes = [LINE, LINE]
    sketch.say("a red top")
    sketch.undo()
    assert sketch.session.text == "" and len(sketch.pad.strokes) == 2
    sketch.undo()
    assert sketch.pad.strokes == [LINE] and len(sketch.session.history) == 1
    sketch.pad.clear()
    assert sketch.session.sketch is None
    sketch.restart()
    assert sketch.pad.strokes == [] and sketch.session.history == []


def upload(content):
    about = {"name": "a.png", "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    return ({**about, "content": memoryview(content)},)


def test_an_upload_replaces_the_drawing_and_is_not_kept(sketch, gallery, tmp_path):
    person = gallery.index.metadata[9]["attributes"]
    picture(person, (64, 128)).save(tmp_path / "sketch.png")
    sketch.pad.strokes = [LINE]
    sketch.upload.value = upload((tmp_path / "sketch.png").read_bytes())
    assert sketch.cards[0].row == 9 and sketch.pad.strokes == []
    assert sketch.upload.value == ()
    assert "content" not in str(sketch.upload.get_state()["value"])
    sketch.undo()
    assert sketch.pad.strokes == [LINE]


def test_a_bad_upload_is_one_sentence(sketch):
    with pytest.raises(ReidError, match="uploaded file .* picture"):
        sketch.upload.value = upload(b"<svg onload=alert(1)>")
    assert "the uploaded file" in sketch.message.value and sketch.upload.value == () and sketch.session.history == []


def test_a_method_without_words_gets_no_line_for_them(gallery):
    model = AttributeModel()
    model.reads = ("sketch",)
    panel = SketchSearch(QuerySession(model, gallery))
    assert panel.entry not in leaves(panel)
    panel.pad.strokes = [LINE]
    assert panel.cards[0].row == panel.session.results(1)[0][0]


def test_a_sentence_is_added_to_the_sketch(sketch):
    sketch.pad.strokes = [LINE]
    sketch.entry.value = "a <red> top"
    sketch.entry._handle_custom_msg({"event": "submit"}, [])
    assert "a &lt;red&gt; top" in sketch.words.value and sketch.session.sketch is not None


# Both


@pytest.mark.parametrize("kind", ["chat", "sketch"])
def test_a_static_picture_shows_the_search(kind, request):
    panel = request.getfixturevalue(kind)
    empty = panel.snapshot()
    panel.session.say("a $red^ top_{")
    panel.refresh()
    shown = panel.snapshot()
    assert isinstance(shown, Image.Image) and shown.size == empty.size
    assert np.asarray(shown).tobytes() != np.asarray(empty).tobytes()


def test_a_refresh_takes_less_than_a_second_in_a_gallery_of_ten_thousand(gallery, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.concatenate([gallery.index.embeddings, rng.random((9_940, 24), dtype=np.float32) / 9])
    metadata = [gallery.index.metadata[i % 60] for i in range(10_000)]
    session = QuerySession(AttributeModel(), Gallery(GalleryIndex(rows, metadata), gallery.root), QUESTIONS)
    chat = ChatSearch(session)
    start = time.perf_counter()
    chat.send("a red top")
    chat.cards[0].like.click()
    assert (time.perf_counter() - start) / 2 < 1
