"""A run's folder: what was run and what came out of it."""

import io
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.figure import Figure

from reidlib import paths
from reidlib.config import Config
from reidlib.data import PersonData
from reidlib.evaluation import Ranks
from reidlib.models import loaded

PACKAGES = ("torch", "open_clip_torch", "transformers", "numpy", "pillow")


class Run:
    """`outputs/<name>/`: describe it first, add results as they come; each file is written whole or not at all.

    `resume` is kept for its trainings (`fit(..., resume=run.resume)`): whether they take up what the folder holds.
    """

    def __init__(self, name: str, resume: bool = True):
        self.name, self.resume, self.folder = name, resume, paths.run_dir(name)
        self.about: dict[str, str] = {}  # of every row: its preset, and the settings that differ from it
        self.description: dict = {}  # config.json
        self.rows: list[dict] = []
        self.per_query: dict[str, np.ndarray] = {}

    def describe(self, data: PersonData, config: Config | None = None, **more) -> None:
        """config.json: settings, versions, commit and a fingerprint of the data, all that makes the run repeatable."""
        if config is not None and "preset" in more:
            self.about = {"preset": more["preset"], "settings": config.changes(more["preset"])}
        self.description = {
            "run": self.name,
            "dataset": data.name,
            "data_fingerprint": data.fingerprint(),
            "config": None if config is None else config.as_dict(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "machine": _machine(),
            "commit": _commit(),
            **more,
        }
        self.write_json("config.json", self.description)

    def note(self, **more) -> None:
        """Adds to config.json what came to light after `describe`."""
        self.description |= more
        self.write_json("config.json", self.description)

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
            others = {model: mark for model, mark in loaded.items() if not f"{model}/".startswith(f"{self.name}/")}
            content = content | {"built_on": others}
        paths.write_json(self.folder / name, content, indent=1, default=str)


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
