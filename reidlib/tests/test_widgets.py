"""The panels through the callbacks that their buttons call, and the sketch pad through its strokes."""

import csv
import re
import time
from unittest.mock import Mock

import numpy as np
import pytest
import traitlets
from ipywidgets import HTML
from PIL import Image, ImageDraw

from reidlib.errors import DataError, ReidError
from reidlib.retrieval import Gallery, GalleryIndex, QuerySession, Question
from reidlib.tests.attribute_model import (
    QUESTIONS,
    AttributeModel,
    TextOnly,
    make_gallery,
    picture,
)
from reidlib.widgets import SearchPanel, SketchPad
from reidlib.widgets.results import presence_in_words
from reidlib.widgets.sketchpad import trace

MARKUP = "<img src=x onerror=alert(1)>&\"'"
LINE = {"points": [[0.1, 0.5], [0.9, 0.5]], "width": 0.05, "ink": 0.87}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def chat(gallery, tmp_path):
    return SearchPanel(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search")


@pytest.fixture
def sketch(gallery, tmp_path):
    return SearchPanel(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search", drawing=True)


def rows_of(panel):
    """The rows of the pictures shown, best first."""
    return [card["row"] for card in panel.results.cards]


def leaves(widget):
    children = getattr(widget, "children", ())
    return [leaf for child in children for leaf in leaves(child)] if children else [widget]


def text_of(panel):
    """Everything a panel shows."""
    shown = [f"{getattr(leaf, 'value', '')} {getattr(leaf, 'description', '')}" for leaf in leaves(panel)]
    return " ".join([*shown, str(panel.results.get_state(["chips", "tray", "cards", "note", "more"]))])


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
    pad.strokes = []
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


def test_the_eraser_takes_away_what_was_drawn_before_it():
    erase = LINE | {"ink": 0.0}
    assert np.asarray(SketchPad(strokes=[LINE, erase]).image())[128, 64].min() == 255
    assert np.asarray(SketchPad(strokes=[LINE, erase, LINE]).image())[128, 64].max() < 60


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
    assert rows_of(chat)[0] == 12
    assert chat.session.text.count("a ") >= 4
    assert not chat.answers.children  # nothing is left to ask
    assert all(word in chat.bubbles.value for word in QUESTIONS[1].text.split())


def test_the_panel_shows_what_the_session_finds(chat):
    chat.send("a red top")
    for card, (row, path, score) in zip(chat.results.cards, chat.session.results(12), strict=True):
        assert (card["row"], card["name"], card["score"]) == (row, path, f"{score:.3f}")
    assert chat.session.question.why in text_of(chat)


def test_enter_sends(chat):
    chat.entry.value = "a red top"
    chat.entry._handle_custom_msg({"event": "submit"}, [])
    assert chat.session.history[0] == {"kind": "say", "text": "a red top"} and chat.entry.value == ""


def test_marks_toggle_and_show(chat):
    chat.send("a red top")
    row = rows_of(chat)[2]
    chat.pressed("like", row)
    assert chat.session.marks == {row: "like"}
    assert [(entry["row"], entry["mark"]) for entry in chat.results.tray] == [(row, "like")]
    chat.pressed("like", row)
    assert chat.session.marks == {} and not chat.results.tray
    row = rows_of(chat)[0]
    chat.results._handle_custom_msg({"event": "dislike", "at": row}, [])  # as the browser says it
    assert chat.session.marks == {row: "dislike"} and row not in rows_of(chat)
    assert chat.results.tray[0]["mark"] == "dislike"


def test_an_empty_search_shows_no_ranking(chat):
    assert not chat.results.cards and "60 pictures are waiting" in chat.results.note
    chat.send("a red top")
    assert len(chat.results.cards) == 12 and chat.results.more
    chat.undo()
    assert not chat.results.cards and "waiting" in chat.results.note


def test_more_results_until_there_are_no_more(chat):
    chat.send("a red top")
    for count in (24, 36, 48, 60):
        chat.pressed("more", 0)
        assert len(chat.results.cards) == count
    assert not chat.results.more
    chat.restart()
    chat.send("a red top")
    assert len(chat.results.cards) == 12


def test_what_was_understood_is_taken_away_piece_by_piece(chat):
    chat.send("a red top")
    chat.send("blue")
    kept, gone = chat.results.chips
    chat.pressed("forget", kept["position"])
    assert [chip["text"] for chip in chat.results.chips] == [gone["text"]] and "red" not in chat.session.text
    chat.undo()
    assert len(chat.results.chips) == 2


def test_a_candidate_or_an_uploaded_photo_is_searched_with(chat, gallery, tmp_path):
    chat.pressed("show", 9)
    assert rows_of(chat)[0] == 9 and chat.results.chips[0]["kind"] == "show"
    picture(gallery.index.metadata[20]["attributes"], (64, 128)).save(tmp_path / "photo.png")
    chat.uploaded((tmp_path / "photo.png").read_bytes(), "photo")
    assert rows_of(chat)[0] == 20 and len(chat.results.chips) == 1


def test_a_picture_is_enlarged_and_one_that_is_gone_still_shows(chat, gallery, monkeypatch):
    sent = []
    monkeypatch.setattr(chat.results, "send", lambda message, buffers: sent.append((message, buffers)))
    chat.results._handle_custom_msg({"event": "open", "at": 3}, [])
    monkeypatch.setattr(gallery, "open", Mock(side_effect=DataError("gone")))
    chat.results._handle_custom_msg({"event": "open", "at": 3}, [])
    assert [message for message, _ in sent] == [{"event": "large", "row": 3}] * 2
    assert all(buffers[0].startswith(b"\xff\xd8") for _, buffers in sent)


def test_presence_is_said_in_words():
    assert presence_in_words(None, 12) == ""
    assert presence_in_words((0.1, 0.2), 12).startswith("Perhaps not here")
    assert "among these 12 is about 80%" in presence_in_words((0.8, 0.9), 12)


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
        chat.pressed("like", 0)
    assert "ZeroDivisionError" in chat.message.value


def test_the_counter_warns_before_text_is_cut(chat):
    chat.entry.value = "red " * 10
    assert "10 of 24 tokens" in chat.counter.value and "reid-warn" not in chat.counter.value
    chat.entry.value = "red " * 40
    assert "reid-warn" in chat.counter.value


def test_save_writes_session_table_and_report(chat, gallery):
    chat.send("a red top")
    chat.pressed("like", rows_of(chat)[1])
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
    chat = SearchPanel(QuerySession(AttributeModel(), gallery, QUESTIONS), folder=tmp_path / "search")
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
    chat = SearchPanel(QuerySession(AttributeModel(), gallery, [asked]), folder=tmp_path / "<u>")
    chat.send(MARKUP)
    chat.pressed("like", 0)
    chat.send(chat.answers.children[0].description)
    chat.save()
    shown = " ".join(widget.value for widget in leaves(chat) if isinstance(widget, HTML))
    page = (chat.folder / "report.html").read_text()
    for text in (shown, page):
        assert "&lt;img src=x onerror" in text
        assert not re.search(r"<script|<img src=x|<b onclick|<u>|<i>", text)
    assert "&lt;script&gt;" in page
    monkeypatch.setattr(chat.session, "undo", Mock(side_effect=ReidError(MARKUP)))
    with pytest.raises(ReidError):
        chat.undo()
    assert "&lt;img" in chat.message.value and "<img" not in chat.message.value


def test_a_panel_offers_what_its_model_reads(gallery):
    model = AttributeModel()
    model.reads = ("sketch",)
    drawn = SearchPanel(QuerySession(model, gallery))
    assert not drawn.talks and "Describe" not in text_of(drawn)
    drawn.pad.strokes = [LINE]
    assert rows_of(drawn)[0] == drawn.session.results(1)[0][0]
    told = SearchPanel(QuerySession(TextOnly(), gallery))
    assert told.talks and not told.draws and "Draw" not in text_of(told)


# The sketch


def blocks(person):
    """A drawing that the model takes for this person: the pad's lines are dark, so only black can be drawn."""
    rows = {"hat_colour": 0.12, "top_colour": 0.37, "trousers_colour": 0.65, "shoes_colour": 0.9}
    return [{"points": [[0, rows[key]], [1, rows[key]]], "width": 0.5} for key, c in person.items() if c == "black"]


def test_strokes_change_the_ranking(sketch, gallery):
    sketch.pad.strokes = [LINE]
    assert sketch.session.strokes == [LINE]
    assert sketch.session.sketch.tobytes() == sketch.pad.image().tobytes()
    assert rows_of(sketch) == [row for row, _, _ in sketch.session.results(12)]
    dressed = next(m["attributes"] for m in gallery.index.metadata if "black" in m["attributes"].values())
    sketch.pad.strokes = blocks(dressed)
    wanted = {key for key, colour in dressed.items() if colour == "black"}
    assert wanted <= {k for k, c in gallery.index.metadata[rows_of(sketch)[0]]["attributes"].items() if c == "black"}


def test_undo_brings_the_strokes_back(sketch):
    sketch.pad.strokes = [LINE]
    sketch.pad.strokes = [LINE, LINE]
    sketch.send("a red top")
    sketch.undo()
    assert sketch.session.text == "" and len(sketch.pad.strokes) == 2
    sketch.undo()
    assert sketch.pad.strokes == [LINE] and len(sketch.session.history) == 1
    sketch.pad.strokes = []
    assert sketch.session.sketch is None
    sketch.restart()
    assert sketch.pad.strokes == [] and sketch.session.history == []


def test_an_upload_replaces_the_drawing_and_is_not_kept(sketch, gallery, tmp_path):
    person = gallery.index.metadata[9]["attributes"]
    picture(person, (64, 128)).save(tmp_path / "sketch.png")
    sketch.pad.strokes = [LINE]
    content = (tmp_path / "sketch.png").read_bytes()
    button = next(leaf for leaf in leaves(sketch) if getattr(leaf, "label", "") == "Upload a sketch")
    button._handle_custom_msg({"event": "file"}, [memoryview(content)])
    assert rows_of(sketch)[0] == 9 and sketch.pad.strokes == []
    assert content not in [value for value in button.get_state().values() if isinstance(value, bytes)]
    sketch.undo()
    assert sketch.pad.strokes == [LINE]


@pytest.mark.parametrize("kind", ["sketch", "photo"])
def test_a_bad_upload_is_one_sentence(sketch, kind):
    with pytest.raises(ReidError, match="uploaded file .* picture"):
        sketch.uploaded(b"<svg onload=alert(1)>", kind)
    assert "the uploaded file" in sketch.message.value and sketch.session.history == []


def test_a_sentence_is_added_to_the_sketch(sketch):
    sketch.pad.strokes = [LINE]
    sketch.entry.value = "a <red> top"
    sketch.entry._handle_custom_msg({"event": "submit"}, [])
    assert "a &lt;red&gt; top" in sketch.bubbles.value and sketch.session.sketch is not None


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
    chat = SearchPanel(session)
    start = time.perf_counter()
    chat.send("a red top")
    chat.pressed("like", rows_of(chat)[0])
    assert (time.perf_counter() - start) / 2 < 1
