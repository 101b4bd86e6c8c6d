"""Ways of asking, measured by round."""

import math

import numpy as np
import pytest

from reidlib.errors import ConfigError
from reidlib.retrieval import Gallery, PolicyRun, bri, run_policy
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, draw_table, make_gallery


def test_bri_by_hand():
    # Ranks 8, 4, 6 have best ranks 8, 4, 4: (log(8 * 4) / 2 + log 4) / 2; ranks 1, 5, 5 are a hit at the start.
    expected = (math.log(32) / 2 + math.log(4)) / 2
    assert bri(np.array([[8, 4, 6]])) == pytest.approx(expected)
    assert bri(np.array([[8, 4, 6], [1, 5, 5]])) == pytest.approx(expected / 2)


def test_summary_by_hand():
    summary = PolicyRun("fixed", False, np.array([[20, 1, 12], [11, 12, 1]]), [[], []]).summary()
    assert summary["R@1"] == [0, 50, 50] and summary["Hits@10"] == [0, 50, 100]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"), 200)


def run(gallery, policy, **settings):
    return run_policy(AttributeModel(), gallery, range(0, 200, 5), policy, rounds=4, questions=QUESTIONS, **settings)


def test_without_questions_nothing_changes_unless_candidates_are_marked(gallery):
    still = run(gallery, "none")
    assert (still.ranks == still.ranks[:, :1]).all() and still.asked == [[]] * 40
    assert not (run(gallery, "none", feedback=True).ranks == still.ranks).all()


def test_policies_ask_what_they_say(gallery):
    keys = [question.key for question in QUESTIONS]
    assert run(gallery, "fixed").asked == [keys] * 40
    assert {tuple(sorted(asked)) for asked in run(gallery, "random").asked} == {tuple(sorted(keys))}
    assert len({tuple(asked) for asked in run(gallery, "random").asked}) > 5


def test_a_truthful_witness_finds_everyone_when_all_is_asked(gallery):
    for policy in ("fixed", "random", "informative"):
        assert run(gallery, policy).summary()["R@1"][-1] == 100


def test_the_informative_policy_is_ahead_when_some_questions_are_useless(tmp_path):
    # Everyone wears a red hat, so the fixed order wastes its first question.
    table = draw_table(tmp_path, 400)
    table = table[[known["hat_colour"] == "red" for known in table["attributes"]]].reset_index(drop=True)
    gallery = Gallery.encode(AttributeModel(), table, tmp_path)
    fixed, informative = (
        run_policy(AttributeModel(), gallery, range(len(table)), policy, rounds=3, questions=QUESTIONS)
        for policy in ("fixed", "informative")
    )
    assert bri(informative.ranks) < bri(fixed.ranks)
    assert informative.summary()["R@1"][3] == 100 > fixed.summary()["R@1"][3]


def test_a_bad_witness_costs_and_the_seed_decides(gallery):
    good, bad = run(gallery, "informative"), run(gallery, "informative", forget=0.3, wrong=0.3, seed=1)
    assert bri(bad.ranks) > bri(good.ranks)
    again, other = (run(gallery, "informative", forget=0.3, wrong=0.3, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.ranks, bad.ranks)
    assert not (other.ranks == bad.ranks).all()


def test_unknown_policies_are_refused(gallery):
    with pytest.raises(ConfigError, match="informative"):
        run(gallery, "best")
