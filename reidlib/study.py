"""Two studies of all methods on the toy world: tuned with equal effort on val, and compared over seeds on test.

`python -m reidlib.study tune clip cfine cffa --trials 8` trains each method that often and writes a line a trial to
`study.csv`, where what is there already is not trained again. Trial 0 is the preset as it stands. Every other one draws
a learning rate, weight decay, schedule and warm-up from the same ranges for all methods, and some of the method's own
losses from `OWN`. `python -m reidlib.study tune` shows the best trials. Presets are then changed by hand.

`python -m reidlib.study try cfine '{"epochs": 6}'` is one training with settings of one's own, to ask why a part does
not help: a line of `study_why.csv`.

`python -m reidlib.study compare --write` runs every method's notebook with its ablations for three seeds and writes
what they say together to docs/toyworld.md and README.md; with `--root` it does so in a world of other people.
"""

import argparse
import csv
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from reidlib import comparison, results, runner, viz
from reidlib.config import Config
from reidlib.data import load
from reidlib.data.batches import MixedBatches, TrainBatches, data_pixels
from reidlib.evaluation import validation
from reidlib.methods import METHODS, config_class, model_class
from reidlib.models import begin, trained
from reidlib.paths import CHECKOUT, outputs_dir, write_text
from reidlib.training import fit

LOG, WHY = (Path(__file__).with_name(name) for name in ("study.csv", "study_why.csv"))
COLUMNS = ("method", "dataset", "trial", "seed", "measured", "value", "mAP", "seconds", "settings")
OWN: dict[str, dict[str, tuple]] = {  # settings that only a method has, and what they are drawn from
    "clip": {"loss": ("itc", "sdm")},
    "cfine": {"ranking_weight": (0.0, 0.3, 1.0, 3.0), "diversity_weight": (0.0, 0.2), "head_lr": (3e-4, 1e-3, 3e-3)},
    "cffa": {"tau": (0.03, 0.05, 0.1), "mlm_weight": (0.0, 0.5), "id_weight": (0.0, 0.3), "augment_words": (0.0, 0.1)},
    "interactreid-1": {"alpha": (0.0, 0.2, 0.5), "ritc_weight": (0.0, 0.1, 0.3)},
    "interactreid": {"mapping_lr": (5.0, 10.0, 20.0), "mapping_width": (96, 192)},
    "diana-1": {"refined_weight": (0.0, 0.5, 1.0), "init_scale": (10.0, 20.0), "masking": (0.0, 0.1)},
    "omni": {"alone_weight": (2.0, 4.0, 8.0), "keep": (0.5, 0.7), "reader_lr": (0.5, 1.0, 2.0)},
    "diana": {"refined_weight": (0.0, 0.5, 1.0), "init_scale": (10.0, 20.0), "masking": (0.0, 0.1)},
}
# A method that begins from another's training, which is looked for in outputs/
STAGES = {"interactreid": "interactreid-1", "diana": "diana-1", "omni": "interactreid-1"}
COMPARED = ("02", "10", "11", "12", "13", "14", "15", "16")
BEGIN, END = "<!-- {command}: from here -->", "<!-- to here -->"  # what a study writes stands between these
COMMAND = "python -m reidlib.study compare --write"
PAGE = """
### R@1 by kind of query
{table}
{told}
### What the papers claim
{claims}
### Any mix of parts
{mixes}"""


def drawn(method: str, trial: int, preset: Config) -> dict[str, Any]:
    """The settings of one trial, {} of the first; the same wherever it is drawn."""
    if trial == 0:
        return {}
    rng = random.Random(f"study {method} {trial}")
    common = {
        "lr": float(f"{preset.lr * 4 ** rng.uniform(-1, 1):.2g}"),
        "weight_decay": rng.choice((0.0, 0.02, 0.05, 0.1)),
        "schedule": rng.choice(("cosine", "linear", "constant")),
        "warmup_epochs": rng.choice((0.2, 0.5, 1.0)),
    }
    return common | {name: rng.choice(values) for name, values in OWN.get(method, {}).items()}


def run_trial(
    method: str, trial: int, dataset: str = "toy", root: str | None = None, seed: int = 0, own: dict | None = None
) -> dict[str, Any]:
    """Train once and return the trial's line of the log: `value` is the best epoch's `select_by` on val.

    own: settings in place of those that are drawn for the trial.
    """
    data = load(dataset, root)
    preset = config_class(method).preset("toy", seed=seed)
    settings = drawn(method, trial, preset) if own is None else own
    torch.manual_seed(seed)
    earlier = [name for name, _ in trained(STAGES.get(method, "none"), dataset=dataset, seed=seed)]
    start = earlier[-1] if earlier else ""
    model = begin(model_class(method), preset.replace(**settings), data.split("train")["pid"].nunique(), start)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pixels = data_pixels(data, model.preprocess)
        batches = (MixedBatches if model.mixes else TrainBatches)(data, model, model.config, pixels)
        validate = validation(data, model, model.config, pixels)
        rows = list(fit(model, batches, model.config, Path(folder), evaluate=validate))
    best = max(rows, key=lambda row: row[preset.select_by])
    return {
        "method": method,
        "dataset": dataset,
        "trial": trial,
        "seed": seed,
        "measured": preset.select_by,
        "value": round(best[preset.select_by], 2),
        "mAP": round(best[f"{preset.select_by.split()[0]} mAP"], 2),
        "seconds": round(time.perf_counter() - begun),
        "settings": json.dumps(settings | ({"start": start} if start else {})),
    }


def trials(log: Path = LOG) -> pd.DataFrame:
    """The log as a table, the best trial of each method first; empty where nothing was tried."""
    frame = pd.read_csv(log) if log.is_file() else pd.DataFrame(columns=COLUMNS)
    return frame.sort_values(["method", "value", "mAP"], ascending=[True, False, False], ignore_index=True)


def compare_seeds(seeds: int, root: str = "", write: bool = False) -> None:
    """Runs every method's notebook with its ablations for each of the first `seeds` seeds, and prints what they say
    together.

    What outputs/ holds already is not run again. root: of a toy world of one's own, such as a held-out one, which needs
    an outputs/ of its own. write: the tables go into docs/toyworld.md, between the comments that name the command, and
    without `root` their first with its figure into README.md.
    """
    for seed in range(seeds):
        asked = {"seed": seed, "ablations": True, "ablation": "all"} | ({"root": root} if root else {})
        for run in runner.plan(runner.select(list(COMPARED)), asked):
            if not (outputs_dir() / run.name / "executed.ipynb").is_file():
                print(f"{run.name}  {runner.execute(run):.0f} s", flush=True)
    found = results.find_results(outputs_dir())
    queries = results.per_query(outputs_dir(), "toy")
    found = found[(found["dataset"] == "toy") & (found["split"] == "test")]
    compared = comparison.compare(found, queries)
    table = results.as_markdown(comparison.overview(compared).rename_axis("R@1").reset_index())
    claims = comparison.claims(queries).round(1).astype(object)
    claims = results.as_markdown(claims.where(claims.notna(), ""))
    mixes = results.as_markdown(comparison.mixes(found).round(1).rename_axis("asked with (mAP)").reset_index())
    told = "".join(f"- {sentence}\n" for sentence in comparison.conclusion(compared))
    print(table, told, claims, mixes, sep="\n")
    if write:
        command = f"{COMMAND} --root HELD_OUT" if root else COMMAND
        page = PAGE.format(table=table, told=told, claims=claims, mixes=mixes)
        _write_between(CHECKOUT / "docs" / "toyworld.md", command, page)
    if write and not root:
        _write_between(CHECKOUT / "README.md", command, table)
        rows = compared[0].differences.sort_values("gain", ascending=False)[["label", "gain", "low", "high"]]
        figure = viz.forest(list(rows.itertuples(index=False)), compared[0].baseline, title=compared[0].kind)
        figure.savefig(CHECKOUT / "notebooks" / "images" / "forest.png", dpi=110, bbox_inches="tight")


def _write_between(file: Path, command: str, text: str) -> None:
    begin = BEGIN.format(command=command)
    before, rest = file.read_text(encoding="utf-8").split(begin)
    write_text(file, f"{before}{begin}\n{text}{END}{rest.split(END, 1)[1]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m reidlib.study", description="Studies of all methods.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    tune = kinds.add_parser("tune", help="with equal effort, measured on val")
    tune.add_argument("methods", nargs="*", choices=[*METHODS, []], help="none: only show what the log holds")
    tune.add_argument("--trials", type=int, default=8, help="of each method (default: %(default)s)")
    tune.add_argument("--dataset", default="toy")
    tune.add_argument("--root", help="where the data set lies, if not under data/, such as a held-out toy world")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--log", type=Path, default=LOG, help="default: %(default)s")
    ask = kinds.add_parser("try", help="one training with settings of one's own, measured on val")
    ask.add_argument("method", choices=METHODS)
    ask.add_argument("settings", type=json.loads, help="as JSON, beside the preset's")
    ask.add_argument("--seed", type=int, default=0)
    compare = kinds.add_parser("compare", help="over seeds, measured on test")
    compare.add_argument("--seeds", type=int, default=3)
    compare.add_argument("--root", default="", help="of another toy world, a held-out one")
    compare.add_argument("--write", action="store_true", help="to docs/toyworld.md and README.md")
    options = parser.parse_args(arguments)
    if options.kind == "compare":
        return compare_seeds(options.seeds, options.root and str(Path(options.root).absolute()), options.write)
    if options.kind == "try":
        return _append(WHY, run_trial(options.method, 0, seed=options.seed, own=options.settings))
    known = trials(options.log)
    done = set(known[["method", "dataset", "seed", "trial"]].itertuples(index=False, name=None))
    for trial in range(options.trials):  # in turns, so that a study that is cut off has tried all alike
        for method in options.methods:
            if (method, options.dataset, options.seed, trial) not in done:
                line = run_trial(method, trial, options.dataset, options.root, options.seed)
                _append(options.log, line)
                print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    print(trials(options.log).groupby("method").head(3).to_string(index=False))
    return None


def _append(log: Path, line: dict[str, Any]) -> None:
    new = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
