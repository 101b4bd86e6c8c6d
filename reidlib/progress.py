"""How far a long loop is: a bar in a notebook or on a terminal; headless, one line kept by the command that runs it."""

import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import auto, std

REPORT = "REIDLIB_PROGRESS"  # names the file to which the bars of a headless notebook write
EVERY = 0.5  # seconds between two looks


def tqdm(*arguments: Any, **options: Any) -> std.tqdm:
    """tqdm's bar with its arguments; in a headless notebook it is drawn in the line of `reid run` (see `Line`)."""
    report = os.environ.get(REPORT)
    if not report:
        if os.environ.get("TQDM_DISABLE"):  # tqdm's bar in a notebook does not look at it
            options["disable"] = True
        return auto.tqdm(*arguments, **options)
    options |= {"disable": options.get("disable") is True, "file": _Report(Path(report)), "mininterval": EVERY}
    return std.tqdm(*arguments, bar_format="{desc} {n_fmt}/{total_fmt}, {rate_noinv_fmt}", **options)


class _Report:
    """What a bar takes for its terminal: a file that holds the bar as it was last drawn."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, text: str) -> None:
        self.path.write_text(re.sub(r"\x1b\[A|[\r\n]", "", text).strip(), encoding="utf-8")

    def flush(self) -> None:
        pass


class Line:
    """One line on the terminal, drawn again and again: run, heading, bar of the loop, time left. Quiet in a log.

    cells: the notebook's. earlier: seconds that each cell took in an earlier execution, by its id. later: seconds that
    the notebooks after this one should take. The attribute `cell` is set to the number of the cell being executed.
    """

    def __init__(self, name: str, cells: list[dict], earlier: dict[str, float], later: float, report: Path):
        self.name, self.cells, self.earlier, self.later, self.report = name, cells, earlier, later, report
        self.drawn = sys.stderr.isatty()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)
        self.start_cell(0)

    def start_cell(self, number: int) -> None:
        self.cell, self.since = number, time.monotonic()
        self.report.write_text("")

    def __enter__(self) -> "Line":
        if self.drawn:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.drawn:
            self.thread.join()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        while not self.done.wait(EVERY):
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{self.text()[:width]}", end="", file=sys.stderr, flush=True)

    def text(self) -> str:
        """What the line says now."""
        loop = " ".join(self.report.read_text(encoding="utf-8").split())
        left = self.left()
        return "  ".join(
            filter(
                None, [self.name.partition("+")[0], self.heading(), loop, f"about {_spoken(left)} left" if left else ""]
            )
        )

    def heading(self) -> str:
        """The last heading above the cell."""
        prose = [cell["source"] for cell in self.cells[: self.cell + 1] if cell["cell_type"] == "markdown"]
        return (re.findall(r"^#+ +(.+)$", "\n".join(prose), re.MULTILINE) or [""])[-1].strip()

    def left(self) -> float:
        """Seconds by earlier executions; 0 where there was none."""
        if not self.earlier:
            return 0.0
        seconds = [self.earlier.get(cell.get("id", ""), 0.0) for cell in self.cells[self.cell :]]
        spent = time.monotonic() - self.since
        return max(seconds[0] - spent, 0.0) + sum(seconds[1:]) + self.later if seconds else self.later


def _spoken(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
