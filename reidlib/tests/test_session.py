"""Query sessions: what was said, drawn, marked and answered becomes the query that the equations say."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.query import OPENING, Query
from reidlib.retrieval import (
    DEFAULT_QUESTIONS,
    Chip,
    GalleryIndex,
    QuerySession,
    QuestionBank,
    make_questions,
    questions_about,
)
from reidlib.retrieval.questions import information_gain, truth
from reidlib.retrieval.report import write_report
from reidlib.retrieval.session import MORE
from reidlib.tests.attribute_model import (
    ATTRIBUTES,
    QUESTIONS,
    AttributeModel,
    Composer,
    Converser,
    TextOnly,
    caption,
    make_gallery,
    picture,
)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def session(gallery):
    return QuerySession(AttributeModel(), gallery, QUESTIONS)


def person(gallery, row):
    return gallery.index.metadata[row]["attributes"]


def embedded(session, **parts):
    return session.encoder.queries([Query(**parts)])[0]


def first(session):
    return session.results(1)[0][0]


def test_words_find_the_person_and_scores_are_inner_products(session, gallery):
    session.say(caption(person(gallery, 7)))
    row, path, score = session.results(3)[0]
    query = embedded(session, text=session.text)
    assert (row, path) == (7, "people/00007.png")
    assert score == pytest.approx(float(query @ gallery.index.vectors([7])[0]), abs=1e-6)


def test_turns_add_up(session, gallery):
    wanted = person(gallery, 11)
    for part, colour in wanted.items():
        session.say(f"a {colour} {part.removesuffix('_colour')} .")
    assert session.text.count(".") == 4 and first(session) == 11


def test_a_sketch_finds_the_person_and_may_be_taken_away(session, gallery):
    before = session.results(5)
    session.draw(picture(person(gallery, 5), (64, 128)))
    assert first(session) == 5
    session.draw(None)
    assert session.results(5) == before and session.sketch is None


def test_sketch_and_words_are_added_as_unit_vectors(session, gallery):
    sketch = picture(person(gallery, 5))
    session.say("a red top")
    session.draw(sketch)
    told, drawn = embedded(session, text="a red top."), embedded(session, sketch=sketch)
    expected = F.normalize(told / told.norm() + drawn / drawn.norm(), dim=0) * told.norm()
    torch.testing.assert_close(session.embedding(), expected)


def test_sketch_and_words_are_composed_where_the_method_can(gallery):
    session, sketch = QuerySession(Composer(), gallery), picture(person(gallery, 5))
    session.draw(sketch)
    session.say("a red top")
    torch.testing.assert_close(session.embedding(), embedded(session, sketch=sketch, text="a red top."))


def test_answers_read_as_one_sentence_and_count_for_what_they_say_beyond_the_question(gallery):
    asked = [replace(QUESTIONS[0], phrases=tuple(f"a person in a {c} hat" for c in QUESTIONS[0].answers)), QUESTIONS[1]]
    session = QuerySession(AttributeModel(), gallery, asked)
    session.say("a blue top.")
    for question, answer in zip(asked, ("red", "green"), strict=True):
        session.ask(question)
        session.answer(answer)
    session.ask(asked[1])
    session.answer("not sure")
    assert session.text == "a blue top, in a red hat. a green top."
    hats, tops = (torch.stack([embedded(session, text=phrase) for phrase in q.phrases]) for q in asked)
    beyond = hats[asked[0].answers.index("red")] - hats.mean(0) + tops[asked[1].answers.index("green")] - tops.mean(0)
    told = embedded(session, text=session.text)
    spread = gallery.index.search(told[None], 60)[0].std(correction=0)
    expected = F.normalize(told / spread + 2.0 * beyond / session.bank.spread, dim=0) * told.norm()
    torch.testing.assert_close(session.embedding(), expected)


def test_a_dialogue_goes_to_a_method_that_converses(gallery):
    session = QuerySession(Converser(), gallery, QUESTIONS)
    session.say("somebody")
    session.say("a blue top")
    session.ask(QUESTIONS[3])
    session.answer("green shoes")
    session.ask(QUESTIONS[2])
    session.answer("I don't know")
    assert session.turns == [(OPENING, "somebody"), (MORE, "a blue top"), (QUESTIONS[3].text, "green shoes")]
    torch.testing.assert_close(session.embedding(), embedded(session, turns=session.turns))
    assert session.ask() is not None  # the phrases are heard as dialogues of one turn


def test_what_a_method_cannot_take_is_said_in_one_sentence_and_changes_nothing(gallery, session):
    only_text = QuerySession(TextOnly(), gallery)
    with pytest.raises(ReidError, match="TextOnly reads text; it cannot read a sketch"):
        only_text.draw(Image.new("RGB", (8, 8)))
    model = AttributeModel()
    model.reads = ("sketch",)
    for act in (lambda s: s.say("a hat"), lambda s: s.ask()):
        with pytest.raises(ReidError, match="Attributes reads sketch; it cannot read a text"):
            act(QuerySession(model, gallery))
    for act in (
        lambda: session.say("  "),
        lambda: session.like(60),
        lambda: session.like(-1),
        lambda: session.answer("red"),
        lambda: session.undo(),
    ):
        with pytest.raises(ReidError):
            act()
    assert only_text.history == session.history == []


def test_likes_and_dislikes_follow_rocchio(session, gallery):
    session.say("a red top")
    told = session.embedding()
    session.like(3)
    session.like(8)
    session.dislike(20)
    liked, disliked = gallery.index.vectors([3, 8]).mean(0), gallery.index.vectors([20])[0]
    expected = F.normalize(told / told.norm() + 0.75 * liked - 0.15 * disliked, dim=0) * told.norm()
    torch.testing.assert_close(session.embedding(), expected)
    session.unmark(20)
    assert session.marks == {3: "like", 8: "like"}


def test_disliked_pictures_leave_and_the_rest_keeps_its_length(session):
    session.say("a red top")
    top = [row for row, _, _ in session.results(3)]
    for row in top:
        session.dislike(row)
    assert not {row for row, _, _ in session.results(100)} & {*top}
    assert len(session.results(10)) == 10 and len(session.results(100)) == 57


def test_marks_alone_are_a_query(session, gallery):
    session.like(4)
    assert first(session) == 4
    session.dislike(4)
    assert session.marks == {4: "dislike"} and 4 not in [row for row, _, _ in session.results(60)]


def test_undo_and_redrawing_cost_no_pass_through_the_network(session):
    session.say("a red top")
    session.results()
    session.like(3)
    session.results()
    passes = session.model.passes
    session.undo()
    session.results()
    session.results(30)
    assert session.model.passes == passes


ACTS = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(["a red top", "blue shoes", "<b>&\x00"])),
    st.tuples(st.sampled_from(["like", "dislike", "unmark"]), st.integers(0, 59)),
    st.tuples(st.just("draw"), st.booleans()),
    st.tuples(st.just("ask"), st.none()),
    st.tuples(st.just("answer"), st.sampled_from(["red", "not sure", "none of these", "a yellow hat"])),
)


def do(session, act, value):
    if act == "draw":
        strokes = [{"points": [[0, 0], [1, 1]], "width": 0.02}]
        session.draw(picture(person(session.gallery, 1)) if value else None, strokes)
    elif act == "ask":
        session.ask()
    elif act != "answer" or session.question:
        getattr(session, act)(value)


@settings(max_examples=40, deadline=None)
@given(acts=st.lists(ACTS, max_size=8))
def test_any_order_survives_undo_and_a_file(acts, gallery, tmp_path_factory):
    bank = QuestionBank(Encoder(AttributeModel()), gallery.index, QUESTIONS)
    session, states = QuerySession(AttributeModel(), gallery, bank), []
    for act, value in acts:
        before = len([e for e in session.history if e["kind"] != "ask"])
        state = (session.results(8), session.text, session.marks)
        do(session, act, value)
        if len([e for e in session.history if e["kind"] != "ask"]) > before:
            states.append(state)
    path = tmp_path_factory.mktemp("session") / "session.json"
    session.save(path)
    loaded = QuerySession.load(path, AttributeModel(), gallery, bank)
    assert loaded.history == session.history and loaded.results(8) == session.results(8)
    while states:
        loaded.undo()
        assert (loaded.results(8), loaded.text, loaded.marks) == states.pop()
    with pytest.raises(ReidError, match="nothing to undo"):
        loaded.undo()


def test_restart_forgets(session):
    session.say("a red top")
    session.ask()
    session.restart()
    assert session.history == [] and session.question is None and session.embedding() is None


def test_a_saved_mark_is_found_again_by_its_picture(session, gallery, tmp_path):
    session.like(9)
    session.save(tmp_path / "s.json")
    kept = json.loads((tmp_path / "s.json").read_text())
    kept["history"][0]["row"] = 2  # the gallery has changed its order since
    (tmp_path / "s.json").write_text(json.dumps(kept))
    assert QuerySession.load(tmp_path / "s.json", AttributeModel(), gallery).marks == {9: "like"}
    kept["history"][0]["image"] = "gone.png"
    (tmp_path / "s.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match="Entry 0 .* marks gone.png"):
        QuerySession.load(tmp_path / "s.json", AttributeModel(), gallery)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "text", "row", "png"]), inner),
    max_leaves=6,
)
KINDS = st.sampled_from(["say", "draw", "like", "dislike", "unmark", "ask", "answer", "x"])
FIELDS = ("text", "png", "strokes", "row", "image", "key", "answers", "phrases", "nouns", "why", "gain")
EVENTS = st.fixed_dictionaries({"kind": KINDS}, optional=dict.fromkeys(FIELDS, JSON))


@settings(max_examples=150, deadline=None)
@given(content=st.one_of(JSON, st.fixed_dictionaries({"history": st.lists(EVENTS, max_size=3)})))
def test_a_damaged_file_is_a_sentence_not_a_traceback(content, gallery, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(json.dumps(content))
    try:
        session = QuerySession.load(path, AttributeModel(), gallery, QUESTIONS)
    except ReidError:
        return
    session.results(3)  # what loads, works


def test_questions_are_about_what_annotations_differ_in():
    known = [{"hat": "cap", "sex": "man", "top_colour": "red"}, {"hat": "none", "sex": "man"}, {"top_colour": "blue"}]
    assert [(question.key, question.answers) for question in questions_about(known)] == [
        ("hat", ("cap", "none")),
        ("top_colour", ("blue", "red")),
    ]
    assert questions_about([{}, {}]) == questions_about([]) == DEFAULT_QUESTIONS


def test_the_question_is_the_one_of_largest_expected_gain(session, gallery):
    session.say("a red top")
    question = session.ask()
    rows = [row for row, _, _ in session.results(60)]
    weights = torch.tensor([score for _, _, score in session.results(60)])
    weights = (weights / weights.std(correction=0)).softmax(0)
    gains = {}
    for q, p in zip(QUESTIONS, session.bank.answer_probabilities(gallery.index.vectors(rows)), strict=True):
        joint = weights[:, None] * p  # p(candidate, answer)
        independent = weights[:, None] * joint.sum(0)
        gains[q.key] = float((joint * (joint / independent).log2()).nansum())
    assert question.key == max(gains, key=gains.get)
    assert question.gain == pytest.approx(gains[question.key], abs=1e-4)
    assert question.key != "top_colour"  # all good candidates share it


def test_information_gain_by_hand():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert information_gain(certain, torch.tensor([0.5, 0.5])) == pytest.approx(1.0)
    assert information_gain(certain, torch.tensor([1.0, 0.0])) == pytest.approx(0.0)
    assert information_gain(torch.full((2, 2), 0.5), torch.tensor([0.5, 0.5])) == pytest.approx(0.0)
    # Three of four wear red: H(3/4) = 0.8113 bits.
    wear = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    assert information_gain(wear, torch.full((4,), 0.25)) == pytest.approx(0.8113, abs=1e-4)


def test_a_question_the_model_is_blind_to_is_asked_last_says_so_and_moves_nothing(gallery):
    blind = make_questions({"mood": ("happy", "sad")})
    known = [
        row | {"attributes": row["attributes"] | {"mood": ["happy", "sad"][row["pid"] % 2]}}
        for row in gallery.index.metadata
    ]
    annotated = GalleryIndex(gallery.index.embeddings, known)
    bank = QuestionBank(Encoder(AttributeModel()), gallery.index, [*blind, *QUESTIONS], annotated)
    assert bank.sharpness[0] < 0.3 and min(bank.sharpness[1:]) > 1
    right = [row["attributes"]["hat_colour"] for row in known]
    seen = bank.answer_probabilities(annotated.vectors(range(60)))[1].max(1)
    assert [QUESTIONS[0].answers[i] for i in seen.indices] == right and seen.values.min() > 0.8
    session = QuerySession(AttributeModel(), gallery, bank)
    session.say("a red top")
    assert [session.ask().key for _ in range(4)][-1] == "mood"
    assert session.question.why == "The model is unsure about this in 8 of the first 8 candidates."
    before = session.embedding()
    session.answer("happy")
    assert F.cosine_similarity(session.embedding(), before, dim=0) > 0.99


def test_captions_tell_the_answers_where_no_attributes_do():
    assert truth(QUESTIONS[1], {"text": ["Someone in a red hat, a blue top"]}) == "blue"
    assert truth(QUESTIONS[1], {"attributes": {"top_colour": "red"}, "text": ["a blue top"]}) == "red"
    assert truth(QUESTIONS[1], {}) is None


def test_the_reason_counts_the_first_candidates(session, gallery):
    session.say("a red top")
    question = session.ask()
    shown = [person(gallery, row)[question.key] for row, _, _ in session.results(8)]
    for colour in set(shown):
        assert f"{shown.count(colour)} “{colour}”" in question.why


def test_a_question_is_asked_once_and_undo_opens_it_again(session):
    session.say("a red top")
    question = session.ask()
    session.answer(question.answers[2])
    asked = {question.key, *(session.ask().key for _ in range(2))}
    assert asked == {*ATTRIBUTES} - {"top_colour"} and session.ask() is None
    session.undo()
    assert session.question.key == question.key and session.question.answers == question.answers
    with pytest.raises(ReidError, match="empty"):
        session.answer(" ")


@pytest.mark.parametrize("answer", ["not sure", "None of these", "I don't know", "none"])
def test_an_answer_that_tells_nothing_changes_nothing(session, answer):
    session.say("a red top")
    before = session.results(10)
    session.ask()
    session.answer(answer)
    assert session.results(10) == before and session.question is None


def test_questions_are_made_from_any_attributes():
    assert len({q.key for q in DEFAULT_QUESTIONS}) == len(DEFAULT_QUESTIONS)
    made = make_questions({"hat": ("none", "cap"), "mood": ("happy", "sad"), "fixed": ("only",)})
    assert [q.key for q in made] == ["hat", "mood"]
    assert made[0].phrases == ("a person", "a person in a cap")
    assert made[0].phrase("CAP") == "a person in a cap" and made[0].phrase("fez") is None
    assert "{" not in "".join(q.text + "".join(q.phrases) for q in [*made, *DEFAULT_QUESTIONS])


def test_a_bank_needs_different_keys(gallery):
    for questions in ([], QUESTIONS[:1] * 2):
        with pytest.raises(ConfigError, match="keys"):
            QuestionBank(Encoder(AttributeModel()), gallery.index, questions)


def test_phrases_are_encoded_once(session):
    session.ask()
    passes = session.model.passes
    session.ask()
    assert session.model.passes == passes


def test_tokens_are_counted_with_what_was_said(session):
    assert session.count_tokens("a red top") == (3, 24)
    session.say("a red top")
    assert session.count_tokens("blue shoes") == (5, 24)
    session.model.count_tokens = lambda text: (99, 77)
    assert session.count_tokens() == (99, 77)


def test_what_the_description_tells_is_not_asked(gallery):
    session = QuerySession(AttributeModel(), gallery, DEFAULT_QUESTIONS)
    session.say("A woman in a red jacket with a black backpack")
    asked = []
    while question := session.ask():
        asked.append(question.key)
    assert set(asked) == {q.key for q in DEFAULT_QUESTIONS} - {"sex", "upper", "upper_colour", "bag"}


def test_a_photo_is_a_query_and_so_is_a_candidate(session, gallery):
    session.show(picture(person(gallery, 9), (400, 900)))
    assert first(session) == 9 and session.photo.size == (57, 128)
    session.show(12)
    assert first(session) == 12 and session.told == [Chip(1, "show", "like people/00012.png")]
    session.say("a person")
    session.show(None)
    assert session.photo is None and [chip.kind for chip in session.told] == ["say"]


def test_chips_are_taken_away_one_by_one_and_come_back(session, gallery):
    session.say("a red top")
    session.draw(picture(person(gallery, 5)))
    session.draw(picture(person(gallery, 6)))
    session.like(3)
    session.ask(QUESTIONS[3])
    session.answer("green")
    session.only({"pid": [3, 4, 5]})
    texts = ["a red top", "the sketch", "liked people/00003.png", "a green shoes", "pid 3 or 4 or 5"]
    assert [chip.text for chip in session.told] == texts
    for chip in session.told[::-1]:
        session.forget(chip.position)
        with pytest.raises(ReidError, match="nothing told"):
            session.forget(chip.position)
    assert session.told == [] and session.sketch is None and session.embedding() is None
    for count in range(1, 6):
        session.undo()
        assert len(session.told) == count
    assert {row for row, _, _ in session.results()} == {3, 4, 5}


def test_only_some_pictures_are_searched(session):
    session.say("a red top")
    everywhere = session.results(60)
    session.only({"pid": (10, 19)})
    assert session.results(60) == [result for result in everywhere if 10 <= result[0] < 20]
    session.only(None)
    assert session.results(60) == everywhere


def test_an_answer_against_what_is_seen_is_a_question(session, gallery):
    session.say("a red top")
    session.ask(QUESTIONS[0])
    session.answer("black")
    assert session.told[-1].sure
    alike = [row for row, known in enumerate(gallery.index.metadata) if known["attributes"]["hat_colour"] == "red"]
    session.only({"pid": alike})
    session.ask(QUESTIONS[0])
    session.answer("white")
    assert not session.told[-1].sure


def test_a_deleted_picture_blocks_nothing(tmp_path):
    gallery = make_gallery(tmp_path, 4)
    (tmp_path / "people" / "00002.png").unlink()
    session = QuerySession(AttributeModel(), gallery, QUESTIONS)
    session.like(2)
    write_report(session, tmp_path / "report.html")
    assert "00002.png" in (tmp_path / "report.html").read_text()
    with pytest.raises(DataError, match="00002.png does not exist"):
        session.show(2)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([{"kind": "say", "text": 7}], "int; expected a text"),
        ([{"kind": "draw", "png": None, "strokes": [{"points": [["a", 1]], "width": 1}]}], "A stroke needs points"),
        ([{"kind": "answer", "text": "red"}] * 100_000, "at most 1,000 entries"),
        ({"0": 1}, "at most 1,000 entries"),
        ([{"kind": "forget", "position": 0}], "nothing told at position 0"),
        ([{"kind": "only", "where": {"pid": {"a": 1}}}], "not a saved session"),
    ],
)
def test_odd_sessions_of_strangers(history, said, gallery, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"history": history}))
    with pytest.raises(ReidError, match=said) as caught:
        QuerySession.load(tmp_path / "s.json", AttributeModel(), gallery)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
