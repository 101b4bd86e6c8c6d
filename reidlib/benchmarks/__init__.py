"""What the workbook costs: training steps, memory, evaluation, search and reading pictures, each a list of rows."""

from collections.abc import Callable

from reidlib.benchmarks.evaluating import evaluation
from reidlib.benchmarks.machine import machine
from reidlib.benchmarks.memory import memory
from reidlib.benchmarks.pictures import pictures
from reidlib.benchmarks.searching import searches
from reidlib.benchmarks.steps import arithmetic, steps
from reidlib.data import load

__all__ = ["MEASUREMENTS", "arithmetic", "evaluation", "machine", "memory", "pictures", "searches", "steps"]

# What `reid benchmark` measures, each by its name and for a preset.
MEASUREMENTS: dict[str, Callable[[str], list[dict]]] = {
    "steps": steps,
    "arithmetic": arithmetic,
    "memory": memory,
    "evaluation": lambda preset: evaluation(),
    "search": lambda preset: searches(),
    "pictures": lambda preset: pictures(load("toy"), preset),
}
