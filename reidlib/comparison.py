"""What runs say together: a table a task, differences to a baseline with intervals, the papers' claims, in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from reidlib.evaluation.metrics import bootstrap_interval, paired_test
from reidlib.published import published
from reidlib.results import METRICS, summarise, without_rounds

# What is compared with each other: the tasks of one kind of query, and what it is called.
KINDS = {
    "Text → picture": ("t2i",),
    "Sketch → picture": ("s2i",),
    "Sketch and text → picture": ("st2i",),
    "Dialogue → picture": ("d2i", "t2i answers"),
}
BASELINES = ("CLIP fine-tuned", "CLIP zero-shot", "CLIP fine-tuned, answers as one text", "InteractReID before stage 1")
# What a trained model is called, by the name of its method.
NAMES = {
    "clip": "CLIP fine-tuned",
    "cfine": "CFine",
    "cffa": "CFFA",
    "interactreid-1": "InteractReID stage 1",
    "interactreid": "InteractReID",
    "diana-1": "DiaNA stage 1",
    "diana": "DiaNA",
    "omni": "Omni",
}
SHOWN = ["R@1", "R@5", "R@10", "mAP"]
PER_QUERY = dict[tuple[str, str], dict[str, np.ndarray]]  # of `results.per_query`


@dataclass
class Comparison:
    """The models of one kind of query. `table`: a row a model, the best R@1 first: label, task, seeds, each metric's
    mean and `<metric> sd`, n_queries. `differences`: a row for each model that answered the baseline's queries: label,
    gain (of mAP, in points), low, high (95 %, paired bootstrap over queries), p (random sign flips)."""

    kind: str
    tasks: tuple[str, ...]
    baseline: str
    table: pd.DataFrame
    differences: pd.DataFrame

    @property
    def best(self) -> pd.Series:
        return self.table.iloc[0]

    def styled(self) -> Styler:
        """The table for reading: mean ± deviation, the best of each metric in bold, the baseline marked."""
        labels = self.table["label"].where(self.table["label"] != self.baseline, f"{self.baseline} (baseline)")
        cells = pd.DataFrame({"": labels.map(escape)})
        for metric in SHOWN:
            cells[metric] = [_cell(*pair) for pair in self.table[[metric, f"{metric} sd"]].itertuples(index=False)]
        cells = cells.assign(seeds=self.table["seeds"], queries=self.table["n_queries"])
        best = {metric: self.table[metric].round(1) == self.table[metric].max().round(1) for metric in SHOWN}
        bold = pd.DataFrame("", index=cells.index, columns=cells.columns)
        for metric in SHOWN:
            bold.loc[best[metric], metric] = "font-weight: bold"
        left = {"selector": "td.col0", "props": "text-align: left"}
        return cells.style.apply(lambda _: bold, axis=None).hide(axis="index").set_table_styles([left])

    def recalls(self, queries: PER_QUERY, most: int = 20) -> dict[str, list[float]]:
        """R@k in percent, k up to `most`, of every model, the baseline first and then the best."""
        labels = sorted(self.table["label"], key=lambda label: label != self.baseline)
        curves = {}
        for label in labels:
            task = self.table.loc[self.table["label"] == label, "task"].item()
            if (label, task) in queries:
                first = queries[label, task]["first"]
                first = first[:, (first > 0).all(axis=0)]
                curves[label] = [100.0 * float((first <= k).mean()) for k in range(1, most + 1)]
        return curves


def compare(found: pd.DataFrame, queries: PER_QUERY, baseline: str = "") -> list[Comparison]:
    """A Comparison for each of `KINDS` that rows of `results.find_results` have whole queries of.

    Ablations and other ways to ask the same model (labels with a comma or "without") are left out, but for answers
    told as one text. `baseline`: a label; otherwise the first of `BASELINES` that was measured, else the weakest.
    """
    rows = without_rounds(found)
    sizes = rows.groupby(["label", "task"])["n_queries"].max().reset_index()
    table = summarise(rows).merge(sizes, on=["label", "task"])
    made = []
    for kind, tasks in KINDS.items():
        mine = table[table["task"].isin(tasks) & table["label"].map(is_whole)]
        mine = mine.sort_values("R@1", ascending=False, ignore_index=True)
        if len(mine):
            known = [label for label in (baseline, *BASELINES) if label in set(mine["label"])]
            chosen = known[0] if known else mine["label"].iloc[-1]
            made.append(Comparison(kind, tasks, chosen, mine, _differences(mine, queries, chosen)))
    return made


def is_whole(label: str) -> bool:
    """Whether a label names a method as it is meant, not an ablation or another way to ask it."""
    return " with" not in label and "," not in label.removesuffix(", answers as one text")


def short_name(method: str, run: str, part: str = "", taken: Collection[str] = ()) -> str:
    """What a trained model is called in a figure: "CFFA", "CLIP fine-tuned (text)"; where that is taken, with the
    settings in its run's name, or the run itself."""
    name, settings = NAMES.get(method, method) + (f" ({part})" if part else ""), run.partition("+")[2]
    longer = f"{name}, {settings.replace('+', ', ')}" if settings else f"{name}, {run}"
    return name if name not in taken else longer if longer not in taken else f"{name}, {run}"


def _differences(table: pd.DataFrame, queries: PER_QUERY, baseline: str) -> pd.DataFrame:
    task_of = dict(zip(table["label"], table["task"], strict=True))
    of = {label: queries[label, task] for label, task in task_of.items() if (label, task) in queries}
    rows = []
    for label in of if baseline in of else ():
        if label != baseline and (found := _difference(of[baseline], of[label])):
            rows.append({"label": label} | found)
    return pd.DataFrame(rows, columns=["label", "gain", "low", "high", "p"])


def _difference(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The gain in mAP from one way of searching to another on the same queries, over as many seeds of both, in points,
    with its interval and p; {} where they did not answer the same number of queries."""
    if before["first"].shape[1] != after["first"].shape[1]:
        return {}
    seeds = min(len(before["first"]), len(after["first"]))
    before, after = ({name: of[:seeds] for name, of in found.items()} for found in (before, after))
    answered = (before["first"] > 0).all(axis=0) & (after["first"] > 0).all(axis=0)
    a, b = (100.0 * found["average_precision"].mean(axis=0)[answered] for found in (before, after))
    low, high = bootstrap_interval(b - a)
    found = {"gain": float((b - a).mean()), "low": float(low), "high": float(high), "p": paired_test(a, b)}
    return found | {"seeds": seeds}


def claims(queries: PER_QUERY) -> pd.DataFrame:
    """What the papers claim, in `claims.csv`, beside what was measured: method, claim, gain of mAP in points with its
    95 % interval (low, high; over queries, of the mean over seeds), seeds, and a verdict in words."""
    rows = []
    for claim in pd.read_csv(Path(__file__).with_name("claims.csv")).itertuples():
        after, before = queries.get((claim.label, claim.task)), queries.get((claim.than, claim.than_task))
        found = _difference(before, after) if before and after else {}
        verdict = "not measured"
        if found:
            verdict = "holds here" if found["low"] > 0 else "does not hold" if found["high"] < 0 else "cannot be told"
        rows.append({"method": claim.method, "claim": claim.claim} | found | {"verdict": verdict})
    columns = ["method", "claim", "gain", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"seeds": "Int64"})


def mixes(found: pd.DataFrame) -> pd.DataFrame:
    """The mAP of each mix of parts (tasks "mix ..."), a row a mix and a column a label, means over seeds."""
    rows = found[found["task"].str.startswith("mix ")]
    table = summarise(rows).pivot_table(index="task", columns="label", values="mAP", sort=False)
    return table.rename(index=lambda task: task.removeprefix("mix "))


def conclusion(compared: list[Comparison]) -> list[str]:
    """What the numbers say: a sentence for each kind of query and one on how sure they are."""
    told, sure = [], []
    for one in compared:
        best, base = one.best, one.table[one.table["label"] == one.baseline].iloc[0]
        sentence = f"{one.kind}: {best['label']} is first of {len(one.table)} with R@1 {best['R@1']:.1f}"
        gain = f", {best['R@1'] - base['R@1']:.1f} more than the baseline, {one.baseline} ({base['R@1']:.1f})"
        for row in one.differences[one.differences["label"] == best["label"]].itertuples():
            gain += f"; in mAP it differs by {row.gain:+.1f} ({row.low:+.1f} to {row.high:+.1f})"
        gain += "."
        if best["label"] == one.baseline:
            gain = "; it is the baseline"
            gain += (
                f", and {one.table['label'][1]} comes next with {one.table['R@1'][1]:.1f}."
                if len(one.table) > 1
                else "."
            )
        told.append(sentence + gain)
        sure += [np.sign(row.low) if row.low > 0 or row.high < 0 else 0 for row in one.differences.itertuples()]
    if not compared:
        return ["Nothing was measured yet."]
    table = pd.concat([one.table for one in compared])
    several = table[table["seeds"] > 1]
    trained = (
        f"over the seeds of a model R@1 varies by up to {several['R@1 sd'].max():.1f} points (standard deviation)"
        if len(several)
        else "every model has one seed, so how much the training varies is not known"
    )
    return [
        *told,
        f"{np.count_nonzero(sure)} of {len(sure)} differences in mAP to a baseline have an interval without zero"
        f" ({sure.count(1)} above, {sure.count(-1)} below), the rest may be the choice of queries; {trained}.",
    ]


def overview(compared: list[Comparison]) -> pd.DataFrame:
    """R@1 (mean ± deviation over seeds) by kind of query, a row a model, those of one method together."""
    columns = {}
    for one in compared:
        cells = [_cell(*pair) for pair in one.table[["R@1", "R@1 sd"]].itertuples(index=False)]
        columns[one.kind] = pd.Series(cells, one.table["label"])
    methods = list(dict.fromkeys(name.split()[0] for name in NAMES.values()))
    table = pd.DataFrame(columns).fillna("")
    return table.loc[sorted(table.index, key=lambda label: ([label.startswith(m) for m in methods], label))[::-1]]


def published_html(one: Comparison, dataset: str) -> str:
    """The published figures for a comparison's tasks, folded: of this data set, of all where it has none."""
    rows = published()
    rows = rows[rows["task"].isin(one.tasks)]
    here = rows[rows["dataset"] == dataset]
    rows, of = (here, dataset) if len(here) else (rows, "other data sets than this one")
    if rows.empty:
        return ""
    columns = ["method", "dataset", *SHOWN, "setting", "source"]
    shown = rows.sort_values(["dataset", "R@1"], ascending=[True, False])[columns].astype(object).fillna("")
    summary = escape(f"{one.kind}: {len(shown)} published rows, on {of}")
    return f"<details><summary>{summary}</summary>{shown.to_html(index=False, border=0)}</details>"


def variants(found: pd.DataFrame) -> pd.DataFrame:
    """The rows that neither `compare` nor `mixes` shows: ablations and other ways to ask, means over seeds."""
    table = summarise(without_rounds(found[~found["task"].str.startswith("mix ")]))
    table = table[~table["label"].map(is_whole)]
    return table.sort_values(["task", "label"], ignore_index=True)[["label", "task", "seeds", *METRICS]]


def by_round(found: pd.DataFrame) -> Mapping[str, dict[str, tuple[pd.Series, pd.Series, pd.Series]]]:
    """R@1 by round, of dialogues and of search sessions: label -> mean, one standard deviation below it, and above.

    The highest after its last round comes first.
    """
    rounds = found.drop(without_rounds(found).index).astype({"round": int})
    rounds = rounds[rounds["round"] > 0]
    curves: dict[str, dict] = {}
    for asked, part in rounds.groupby(np.where(rounds["method"] == "session", "Search sessions", "Dialogues")):
        for label, mine in part.groupby("label"):
            scores = mine.groupby("round")["R@1"].agg(["mean", "std"]).fillna(0.0)
            low, high = scores["mean"] - scores["std"], scores["mean"] + scores["std"]
            curves.setdefault(str(asked), {})[str(label)] = (scores["mean"], low, high)
    return {asked: dict(sorted(of.items(), key=lambda curve: -curve[1][0].iloc[-1])) for asked, of in curves.items()}


def _cell(mean: float, sd: float) -> str:
    return f"{mean:.1f}" if np.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"
