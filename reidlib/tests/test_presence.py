"""Whether the person is there: probabilities that separate, and hold."""

import json

import numpy as np
import pytest

from reidlib.errors import DataError
from reidlib.retrieval import Presence, QuerySession
from reidlib.retrieval.presence import auroc, open_set, reliability
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, caption, draw_table, make_gallery


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    root = tmp_path_factory.mktemp("known")
    return open_set(AttributeModel(), draw_table(root, 60), root)


def test_half_of_those_looked_for_are_not_there(searches):
    ranks = np.array([rank for *_, rank in searches])
    assert (ranks > 0).mean() == 0.5 and len(searches) == 60 * 2 * 12
    best, spread, size, rank = next(search for search in searches if search[-1] == 1)
    assert size == 30 and len(best) == 21 and list(best) == sorted(best, reverse=True) and spread > 0


def test_probabilities_separate_and_hold_for_other_people(searches, tmp_path):
    presence = Presence.fit(searches)
    others = open_set(AttributeModel(), draw_table(tmp_path, 60, seed=5), tmp_path, seed=3)
    ranks = np.array([rank for *_, rank in others])
    for k in (1, 10):
        among, anywhere = np.array([presence.probabilities(*search, k) for *search, _ in others]).T
        assert auroc(anywhere, ranks > 0) > 0.75 and auroc(among, (ranks > 0) & (ranks <= k)) > 0.75
        assert abs(anywhere.mean() - 0.5) < 0.06 and (among <= anywhere).all()
        assert abs(among.mean() - ((ranks > 0) & (ranks <= k)).mean()) < 0.06
        bins = reliability(anywhere, ranks > 0)
        assert sum(abs(likely - true) * count for likely, true, count in bins) / len(ranks) < 0.15


def test_auroc_by_hand():
    truth = np.array([True, True, False, False])
    assert auroc(np.array([0.9, 0.4, 0.5, 0.1]), truth) == 0.75 and auroc(np.full(4, 0.5), truth) == 0.5


def test_a_session_says_perhaps_not_here(searches, tmp_path):
    gallery = make_gallery(tmp_path, 40)
    person = gallery.index.metadata[7]["attributes"]
    session = QuerySession(AttributeModel(), gallery, QUESTIONS, Presence.fit(searches))
    assert session.presence(5) is None
    session.say(caption(person))
    among, anywhere = session.presence(5)
    assert 0.5 < among <= anywhere <= 1
    session.only({"pid": [row["pid"] for row in gallery.index.metadata if row["pid"] != 7]})
    assert session.presence(5)[1] < 0.5 < anywhere
    assert QuerySession(AttributeModel(), gallery, QUESTIONS).presence(5) is None


def test_it_is_kept_for_its_model(tmp_path, monkeypatch):
    table, file = draw_table(tmp_path, 8), tmp_path / "presence.json"
    first = Presence.kept(AttributeModel(), table, tmp_path, file)
    with monkeypatch.context() as patch:
        patch.setattr("reidlib.retrieval.presence.open_set", None)
        assert (Presence.kept(AttributeModel(), table, tmp_path, file).here == first.here).all()
    file.write_text(json.dumps({"stamp": "another", "here": [0], "shown": [0]}))
    assert len(Presence.kept(AttributeModel(), table, tmp_path, file).here) == 3
    with pytest.raises(DataError, match="annotates too few people"):
        open_set(AttributeModel(), table[:3], tmp_path)
