"""Tuning with equal effort: as many random trials for every method, over the same kinds of settings, measured on val.

`python -m reidlib.study clip cfine cffa --trials 8` trains each method that often on the toy world and writes a line a
trial to `study.csv`, where what is there already is not trained again. Trial 0 is the preset as it stands. Every other
one draws a learning rate, weight decay, schedule and warm-up from the same ranges for all methods, and some of the
method's own losses from `OWN`. `python -m reidlib.study` shows the best trials. Presets are then changed by hand.
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

from reidlib.config import Config
from reidlib.data import load
from reidlib.data.batches import MixedBatches, TrainBatches, data_pixels
from reidlib.evaluation import validation
from reidlib.methods import METHODS, config_class, create
from reidlib.training import fit

LOG = Path(__file__).with_name("study.csv")
COLUMNS = ("method", "dataset", "trial", "seed", "measured", "value", "mAP", "seconds", "settings")
OWN: dict[str, dict[str, tuple]] = {  # settings that only a method has, and what they are drawn from
    "clip": {"loss": ("itc", "sdm")},
    "cfine": {"ranking_weight": (0.0, 0.3, 1.0, 3.0), "diversity_weight": (0.0, 0.2), "head_lr": (3e-4, 1e-3, 3e-3)},
    "cffa": {"tau": (0.03, 0.05, 0.1), "mlm_weight": (0.0, 0.5), "id_weight": (0.0, 0.3), "augment_words": (0.0, 0.1)},
    "interactreid-1": {"alpha": (0.0, 0.2, 0.5), "ritc_weight": (0.0, 0.1, 0.3)},
    "interactreid": {"mapping_lr": (5.0, 10.0, 20.0), "mapping_width": (96, 192)},
    "diana-1": {"refined_weight": (0.0, 0.5, 1.0), "init_scale": (10.0, 20.0), "masking": (0.0, 0.1)},
    "omni": {"alone_weight": (0.25, 0.5, 1.0), "keep": (0.5, 0.7), "reader_lr": (0.5, 1.0, 2.0)},
    "diana": {"refined_weight": (0.0, 0.5, 1.0), "init_scale": (10.0, 20.0), "masking": (0.0, 0.1)},
}


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


def run_trial(method: str, trial: int, dataset: str = "toy", root: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Train once and return the trial's line of the log: `value` is the best epoch's `select_by` on val."""
    data = load(dataset, root)
    preset = config_class(method).preset("toy", seed=seed)
    settings = drawn(method, trial, preset)
    torch.manual_seed(seed)
    model = create(method, preset.replace(**settings).as_dict(), data.split("train")["pid"].nunique())
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
        "settings": json.dumps(settings),
    }


def trials(log: Path = LOG) -> pd.DataFrame:
    """The log as a table, the best trial of each method first; empty where nothing was tried."""
    frame = pd.read_csv(log) if log.is_file() else pd.DataFrame(columns=COLUMNS)
    return frame.sort_values(["method", "value", "mAP"], ascending=[True, False, False], ignore_index=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m reidlib.study", description="Tune methods with equal effort.")
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []], help="none: only show what the log holds")
    parser.add_argument("--trials", type=int, default=8, help="of each method (default: %(default)s)")
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--root", help="where the data set lies, if not under data/, such as a held-out toy world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=LOG, help="default: %(default)s")
    options = parser.parse_args(arguments)
    known = trials(options.log)
    done = set(known[["method", "dataset", "seed", "trial"]].itertuples(index=False, name=None))
    for trial in range(options.trials):  # in turns, so that a study that is cut off has tried all alike
        for method in options.methods:
            if (method, options.dataset, options.seed, trial) not in done:
                line = run_trial(method, trial, options.dataset, options.root, options.seed)
                _append(options.log, line)
                print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    print(trials(options.log).groupby("method").head(3).to_string(index=False))


def _append(log: Path, line: dict[str, Any]) -> None:
    new = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
