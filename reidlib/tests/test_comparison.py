"""The page of results: what is compared with what, how sure it is, and that its sentences follow the numbers."""

import numpy as np
import pandas as pd
import pytest

from reidlib.comparison import (
    by_round,
    claims,
    compare,
    conclusion,
    is_whole,
    mixes,
    published_html,
    short_name,
    variants,
)


def row(label, task, recall, seed=0, round="", method="clip", queries=40):
    figures = {"R@1": recall, "R@5": recall + 10, "R@10": recall + 20, "mAP": recall + 5, "mINP": recall}
    return {
        "method": method, "label": label, "dataset": "toy", "split": "test", "task": task, "round": round,
        "seed": seed, "n_queries": queries, **figures,
    }  # fmt: skip


def ranks(precision, seeds=1, queries=40):
    generator = np.random.default_rng(int(1000 * precision))
    values = np.clip(precision + 0.02 * generator.standard_normal((seeds, queries)), 0, 1)
    return {"first": np.where(values > 0.5, 1, 3), "average_precision": values}


@pytest.fixture
def found():
    rows = [
        row("CLIP zero-shot", "t2i", 20.0),
        row("CLIP fine-tuned", "t2i", 30.0),
        row("CLIP fine-tuned", "t2i", 34.0, seed=1),
        row("CFFA", "t2i", 45.25, method="cffa"),
        row("CFFA without ID", "t2i", 50.0, method="cffa"),
        row("InteractReID, sum", "st2i", 50.0),
        row("DiaNA", "d2i", 60.0, method="diana"),
        row("CLIP fine-tuned, answers as one text", "t2i answers", 25.0),
        *(row("DiaNA", f"d2i round {n}", 10.0 * n, round=n, method="diana") for n in (1, 2)),
        row("chat", "d2i round 1", 5.0, round=1, method="session"),
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def queries():
    return {
        ("CLIP zero-shot", "t2i"): ranks(0.2, queries=39),
        ("CLIP fine-tuned", "t2i"): ranks(0.3, seeds=2),
        ("CFFA", "t2i"): ranks(0.6),
        ("DiaNA", "d2i"): ranks(0.301),
        ("CLIP fine-tuned, answers as one text", "t2i answers"): ranks(0.3),
    }


def test_one_table_for_each_kind_of_query_the_best_first(found, queries):
    text, dialogue = compare(found, queries)
    assert text.table["label"].tolist() == ["CFFA", "CLIP fine-tuned", "CLIP zero-shot"]
    assert text.table["R@1"].tolist() == [45.25, 32.0, 20.0] and text.table["seeds"].tolist() == [1, 2, 1]
    assert text.baseline == "CLIP fine-tuned" and dialogue.baseline == "CLIP fine-tuned, answers as one text"
    assert dialogue.table["task"].tolist() == ["d2i", "t2i answers"], "the same told turn by turn and at once"
    assert compare(found, queries, "CLIP zero-shot")[0].baseline == "CLIP zero-shot"


def test_differences_are_paired_and_need_the_same_queries(found, queries):
    text, dialogue = compare(found, queries)
    [gain] = text.differences.to_dict("records")
    expected = 100 * (
        queries["CFFA", "t2i"]["average_precision"][0].mean() - ranks(0.3, 2)["average_precision"][0].mean()
    )
    assert gain["label"] == "CFFA" and gain["gain"] == pytest.approx(expected)
    assert gain["low"] < gain["gain"] < gain["high"] and gain["low"] > 25 and gain["p"] < 0.001
    [small] = dialogue.differences.to_dict("records")
    assert small["low"] < 0 < small["high"] and small["p"] > 0.05


def test_the_best_is_bold_and_the_baseline_marked(found, queries):
    page = compare(found.replace("CFFA", "<b>CFFA"), queries)[0].styled().to_html()
    assert "CLIP fine-tuned (baseline)" in page and "32.0 ± 2.8" in page and "45.2" in page
    assert "<b>CFFA" not in page and page.count("font-weight: bold") == 1  # one rule, for the cells of one row


def test_curves_begin_with_the_baseline(found, queries):
    curves = compare(found, queries)[0].recalls(queries, most=3)
    assert list(curves) == ["CLIP fine-tuned", "CFFA", "CLIP zero-shot"]
    assert len(curves["CFFA"]) == 3 and curves["CFFA"][2] == 100


def test_the_conclusion_is_made_from_the_numbers(found, queries):
    text, dialogue, sure = conclusion(compare(found, queries))
    assert text.startswith(
        "Text → picture: CFFA is first of 3 with R@1 45.2, 13.2 more than the baseline, CLIP fine-tuned (32.0);"
        " in mAP it differs by +"
    )
    assert dialogue.startswith("Dialogue → picture: DiaNA is first of 2 with R@1 60.0")
    assert sure == (
        "1 of 2 differences in mAP to a baseline have an interval without zero (1 above, 0 below), the rest may be the"
        " choice of queries; over the seeds of a model R@1 varies by up to 2.8 points (standard deviation)."
    )
    assert conclusion([]) == ["Nothing was measured yet."]
    alone = conclusion(compare(found[found["label"] == "CLIP fine-tuned"], queries))[0]
    assert alone.endswith("first of 1 with R@1 32.0; it is the baseline.")


def test_ablations_and_other_ways_to_ask_stand_apart(found):
    assert [label for label in found["label"].unique() if not is_whole(label)] == [
        "CFFA without ID",
        "InteractReID, sum",
    ]
    assert variants(found)["label"].tolist() == ["InteractReID, sum", "CFFA without ID"]


def test_rounds_of_dialogues_and_sessions(found):
    rounds = by_round(found)
    assert list(rounds) == ["Dialogues", "Search sessions"]
    mean, low, _ = rounds["Dialogues"]["DiaNA"]
    assert mean.tolist() == low.tolist() == [10.0, 20.0]
    better = pd.DataFrame([row("witness", "d2i round 1", 7.0, round=1, method="session")])
    assert list(by_round(pd.concat([found, better], ignore_index=True))["Search sessions"]) == ["witness", "chat"]


def test_published_figures_are_folded(found, queries):
    text, dialogue = compare(found, queries)
    page = published_html(text, "cuhk-pedes")
    assert page.startswith("<details>") and "on cuhk-pedes" in page and "rstpreid" not in page and "nan" not in page
    assert "rstpreid" in published_html(text, "toy") and "other data sets" in published_html(text, "toy")
    assert "RAVEL" in published_html(dialogue, "toy")


def test_models_have_short_names():
    assert short_name("cffa", "11_train_cffa") == "CFFA" and short_name("mine", "50_mine") == "mine"
    assert short_name("clip", "02_clip_baseline", "text") == "CLIP fine-tuned (text)"
    assert short_name("cffa", "11_train_cffa+seed=1+max_steps=20", "", ["CFFA"]) == "CFFA, seed=1, max_steps=20"


def test_claims_get_the_verdict_of_their_interval(queries):
    queries["CFFA without local features", "t2i"] = ranks(0.7)
    queries["DiaNA", "d2i round 1"] = queries["DiaNA", "d2i"]
    table = claims(queries).set_index("claim")
    told = table.loc["aligning wholes and parts by one loss beats a fine-tuned CLIP"]
    expected = 100 * (queries["CFFA", "t2i"]["average_precision"][0]).mean()
    expected -= 100 * queries["CLIP fine-tuned", "t2i"]["average_precision"][0].mean()  # the seed that both have
    assert told["gain"] == pytest.approx(expected) and told["low"] < told["gain"] < told["high"]
    assert told["verdict"] == "holds here" and told["seeds"] == 1
    assert table.loc["local features help", "verdict"] == "does not hold"
    assert table.loc["more rounds find more", "verdict"] == "cannot be told"
    assert table.loc["the refiner helps", "verdict"] == "not measured"
    assert not claims({}).empty


def test_mixes_stand_side_by_side(found):
    more = [
        row("Omni", "mix text", 30.0),
        row("Omni", "mix text", 32.0, seed=1),
        row("Omni, the rule", "mix text", 20.0),
    ]
    table = mixes(pd.concat([found, pd.DataFrame(more)]))
    assert table.loc["text"].to_dict() == {"Omni": 36.0, "Omni, the rule": 25.0}
    assert "mix text" not in set(variants(pd.concat([found, pd.DataFrame(more)]))["task"])
    assert mixes(found).empty
