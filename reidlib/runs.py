"""A run's folder: what was run, what came out of it, and loading its model again."""

import io
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.figure import Figure

from reidlib import methods, paths, weights
from reidlib.config import Config
from reidlib.data import PersonData
from reidlib.devices import pick_device
from reidlib.errors import CheckpointError, ReidError
from reidlib.evaluation import Ranks
from reidlib.methods.base import Method

PACKAGES = ("torch", "open_clip_torch", "transformers", "numpy", "pillow")
_loaded: dict[str, str] = {}  # the trained models that this process has loaded, with a fingerprint of their weights


class Run:
    """`outputs/<name>/`: describe it first, add results as they come; each file is written whole or not at all.

    `resume` is kept for its trainings (`fit(..., resume=run.resume)`): whether they take up what the folder holds.
    """

    def __init__(self, name: str, resume: bool = True):
        self.name, self.resume, self.folder = name, resume, paths.run_dir(name)
        self.about: dict[str, str] = {}  # of every row: its preset, and the settings that differ from it
        self.rows: list[dict] = []
        self.per_query: dict[str, np.ndarray] = {}

    def describe(self, data: PersonData, config: Config | None = None, **more) -> None:
        """config.json: settings, versions, commit and a fingerprint of the data, all that makes the run repeatable."""
        if config is not None and "preset" in more:
            self.about = {"preset": more["preset"], "settings": config.changes(more["preset"])}
        self.write_json(
            "config.json",
            {
                "run": self.name,
                "dataset": data.name,
                "data_fingerprint": data.fingerprint(),
                "config": None if config is None else config.as_dict(),
                "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
                "machine": _machine(),
                "commit": _commit(),
                **more,
            },
        )

    def add(self, rows: list[dict], ranks: Mapping[str, Ranks], **labels) -> None:
        """Adds the rows of an evaluation with `labels` (method, label, dataset, seed) and writes metrics.json."""
        self.rows += [{**self.about, **labels, **row} for row in rows]
        for task, found in ranks.items():
            key = "|".join(str(labels.get(name, "")) for name in ("method", "label", "dataset", "seed")) + f"|{task}"
            self.per_query[f"{key}|first"] = found.first
            self.per_query[f"{key}|average_precision"] = found.average_precision
        with paths.written_whole(self.folder / "per_query.npz") as part, part.open("wb") as out:
            np.savez_compressed(out, **self.per_query)
        self.write_json("metrics.json", {"rows": self.rows})

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a matplotlib figure as figures/<name>.png; in a notebook it also shows this very picture, once."""
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        with paths.written_whole(folder / f"{name}.png") as part:
            part.write_bytes(drawn.getvalue())
        plt.close(figure)  # else the cell would show it again at its end
        if get_ipython() is not None:
            display(Image(drawn.getvalue(), alt=figure.get_suptitle() or name))

    def write_json(self, name: str, content: dict) -> None:
        """Writes a file of the run; metrics.json also says on which trained models of other runs it is built."""
        if name == "metrics.json":
            others = {model: mark for model, mark in _loaded.items() if not f"{model}/".startswith(f"{self.name}/")}
            content = content | {"built_on": others}
        paths.write_json(self.folder / name, content, indent=1, default=str)


def load_model(run: str, part: str = "", which: str = "best") -> Method:
    """The trained model of a run, on the CPU in evaluation mode; `part` is the folder of one of several trainings.

    Raises CheckpointError when the run has none.
    """
    file = paths.inside(paths.outputs_dir(), f"{run}/{part}") / "checkpoint" / f"{which}.safetensors"
    state = weights.state_of(file)
    try:
        method, settings, people, towers = (
            state["method"],
            dict(state["config"]),
            int(state["num_classes"]),
            dict(state.get("towers") or {}),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not say of which method it is; expected a checkpoint of fit.") from error
    model = methods.create(method, settings, people, towers)
    weights.load(file, model)
    _loaded[f"{run}/{part}".strip("/")] = weights.fingerprint(model)
    return model.eval()


def trained(method: str = "", **described) -> list[tuple[str, str]]:
    """(run, part) of every finished training under outputs/, newest last.

    Of one method or of all; `described` asks for values in the run's config.json, such as dataset="toy", seed=0.
    """
    files = sorted(paths.outputs_dir().glob("[!.]*/**/checkpoint/best.json"), key=lambda file: file.stat().st_mtime)
    found = []
    for file in files:
        name = _json(file, "the JSON beside a checkpoint").get("method")
        run, *part = file.parent.parent.relative_to(paths.outputs_dir()).parts
        description = paths.outputs_dir() / run / "config.json"
        fits = not described or (
            description.is_file() and described.items() <= _json(description, "the description of a run").items()
        )
        if fits and method in ("", name):
            found.append((run, str(Path(*part)) if part else ""))
    return found


def _json(file: Path, kind: str) -> dict:
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} should be {kind} and is not ({error}).") from error


def searcher(*kinds: str, run: str = "") -> tuple[Method, str]:
    """A model to search with, on the device there is, and one sentence that says which.

    It is that of `run` ("<run>" or "<run>/<part>"), else of the newest training that takes one of these kinds of query
    ("text", "sketch", ...), else the small CLIP as it comes. Raises ReidError where `run` takes none of them.
    """
    wanted = [tuple(run.split("/", 1))] if run else reversed(trained())
    for name, *part in wanted:
        model = load_model(name, *part)
        if set(kinds) & set(model.reads):
            where = "/".join(filter(None, (name, *part)))
            return model.to(pick_device()), f"The model is {model.name} from the run {where}."
        if run:
            raise ReidError(f"The run {run} reads {' and '.join(model.reads)}; expected {' or '.join(kinds)}.")
    model = methods.create("clip", {"views": ["text", "sketch"]}).eval().to(pick_device())
    return model, "No run has trained a model that fits, so this is the small CLIP as it comes (zero-shot)."


def _machine() -> dict[str, str | int]:
    """What the last digits of a sum depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"system": platform.system(), "cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu}


def _commit() -> str:
    """The checkout's commit, marked when files differ from it; empty outside a git checkout."""
    command = ["git", "-C", str(paths.CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
