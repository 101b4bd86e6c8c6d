"""The simulated witness: what it knows, admits, forgets and gets wrong."""

import pytest

from reidlib.errors import ConfigError
from reidlib.retrieval import Question, Witness, make_questions
from reidlib.retrieval.questions import NONE_OF_THESE, UNKNOWN

COLOURS = ("red", "blue", "green", "white")
TOP, LEGS, BAG, SEX = make_questions(
    {"upper_colour": COLOURS, "lower_colour": COLOURS, "bag": ("none", "backpack", "handbag"), "sex": ("man", "woman")}
)


def test_it_answers_from_attributes_and_admits_what_they_do_not_tell():
    witness = Witness({"upper_colour": "red", "bag": "suitcase"}, text=["a green shirt"])
    assert [witness.reply(question) for question in (TOP, BAG, LEGS)] == ["red", NONE_OF_THESE, UNKNOWN]


@pytest.mark.parametrize(
    ("caption", "question", "answer"),
    [
        ("A man in a red shirt and blue jeans.", TOP, "red"),
        ("A man in a red shirt and blue jeans.", LEGS, "blue"),
        ("A man in a red and white striped shirt.", TOP, "red"),
        ("He has RED hair.", TOP, UNKNOWN),
        ("A shirt, worn with red shoes", TOP, UNKNOWN),
        ("She carries a backpack", BAG, "backpack"),
        ("a woman walks", SEX, "woman"),
        ("several women", SEX, UNKNOWN),
        ("", SEX, UNKNOWN),
    ],
)
def test_it_matches_the_words_of_a_caption(caption, question, answer):
    assert Witness(text=[caption]).reply(question) == answer


def test_it_answers_from_a_dialogue():
    witness = Witness(turns=[[("What colour is the shirt?", "It is green."), ("And below?", "white trousers")]])
    assert [witness.reply(question) for question in (TOP, LEGS, BAG)] == ["green", "white", UNKNOWN]


def many(count=2_000):
    return [Question(f"key{i}", "?", COLOURS, COLOURS) for i in range(count)]


def test_it_forgets_and_errs_at_the_rates_set():
    questions = many()
    truth = {question.key: "red" for question in questions}
    replies = [Witness(truth, forget=0.3, wrong=0.2, seed=1).reply(question) for question in questions]
    assert replies.count(UNKNOWN) / 2_000 == pytest.approx(0.3, abs=0.04)
    known = [reply for reply in replies if reply != UNKNOWN]
    assert 1 - known.count("red") / len(known) == pytest.approx(0.2, abs=0.04)
    assert set(known) == set(COLOURS)


def test_it_is_the_same_again_with_the_same_seed_whatever_the_order():
    questions = many(50)
    truth = {question.key: "red" for question in questions}

    def ask(seed, order):
        witness = Witness(truth, forget=0.3, wrong=0.3, seed=seed)
        return {question.key: witness.reply(question) for question in order}

    assert ask(1, questions) == ask(1, questions[::-1]) != ask(2, questions)


def test_it_judges_candidates():
    witness = Witness({"a": "1", "b": "2", "c": "3"})
    assert witness.judge({"a": "1", "b": "2", "c": "0"}, 0) == "like"
    assert witness.judge({"a": "1", "b": "0", "c": "0"}, 0) == "dislike"
    assert witness.judge({"d": "1"}, 0) is None
    assert Witness({"a": "1"}, wrong=1.0).judge({"a": "1"}, 0) == "dislike"
    assert Witness({"a": "1"}, forget=1.0).judge({"a": "1"}, 0) is None


def test_it_opens_with_little():
    assert Witness({"sex": "man"}).opening() == "a man"
    assert Witness(text=["The woman wears a red shirt and jeans"]).opening() == "The woman wears a red"
    assert Witness().opening() == "a person"


def test_rates_are_checked():
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Witness(forget=2)
