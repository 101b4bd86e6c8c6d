"""The `reid` command: runs the notebooks without a browser, shows results, checks data sets."""

import argparse
import inspect
import sys
import textwrap
import warnings
from pathlib import Path

from reidlib.errors import ReidError
from reidlib.paths import data_dir, outputs_dir

# What is slow to import (torch, pandas, papermill) is imported by the command that needs it.

ABOUT = """\
A research workbook on finding a person by words, by conversation or by a sketch.

The notebooks in notebooks/ tell the story and can be stepped through in JupyterLab; this command runs the same
notebooks without a browser. Everything runs on a small drawn world (`toy`) until you put a data set under data/
(data/README.md says where to ask for one).
"""

EXAMPLES = """\
examples:
  reid run                                             every notebook, in order, on the toy world
  reid run 02 -p dataset cuhk-pedes -p preset paper    one notebook, on a real data set
  reid results                                         one table of everything in outputs/
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help ends with text that is made only when it is asked for."""

    def closing(self) -> str:
        return ""

    def format_help(self) -> str:
        return super().format_help() + self.closing()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted."""
    warnings.showwarning = lambda message, *_: print(f"reid: warning: {message}", file=sys.stderr)
    try:
        options = build_parser().parse_args(arguments)
        return options.command(options) or 0
    except (ReidError, OSError) as error:
        print(f"reid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nreid: interrupted", file=sys.stderr)
        return 130


def build_parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="reid", description=ABOUT, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(function, name: str, help_text: str) -> Parser:
        sub = commands.add_parser(name, help=help_text, description=inspect.getdoc(function), formatter_class=raw)
        sub.set_defaults(command=function)
        return sub

    run = command(run_notebooks, "run", "run notebooks without a browser")
    run.add_argument("names", nargs="*", metavar="NOTEBOOK", help="number, name or its beginning; none means all")
    run.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter; the value is a Python literal, or else text",
    )  # fmt: skip
    run.add_argument("--run", metavar="NAME", help="the folder in outputs/ (default: the notebook and its parameters)")
    run.closing = lambda: "\nnotebooks:\n" + _listing()

    command(list_notebooks, "list", "the notebooks and their parameters")
    results = command(show_results, "results", "one table of all runs in outputs/")
    results.add_argument("--csv", action="store_true", help="comma-separated values, unrounded")
    check = command(check_dataset, "check", "check a data set's files")
    check.add_argument("dataset", metavar="DATASET", help="cuhk-pedes, icfg-pedes, ... (data/README.md lists them)")
    check.add_argument("--root", type=Path, help="its folder (default: its own name under data/)")
    command(make_toy, "toy", "make the toy world (notebooks make it when they need it)")
    return parser


def run_notebooks(options: argparse.Namespace) -> int:
    """Run notebooks in order, each from its own kernel, to outputs/<run>/executed.ipynb.

    Parameters are checked before a kernel starts. A notebook that fails ends the command; what ran is kept in
    outputs/<run>/executed.partial.ipynb.
    """
    from reidlib import runner

    parameters = {name: runner.parse_value(value) for name, value in options.parameters}
    name = options.run if options.run is not None else parameters.pop("run", None)
    runs = runner.plan(runner.select(options.names), parameters, name if name is None else str(name))
    for run in runs:
        for parameter in run.skipped:
            print(f"{run.notebook.stem} has no parameter {parameter!r} and runs without it")
    seconds = {}
    width = max(len(run.name) for run in runs)
    for position, run in enumerate(runs):
        print(f"{run.name:<{width}} ", end="", flush=True)
        try:
            seconds[run.name] = runner.execute(run)
        except runner.NotebookError as error:
            print(" failed", flush=True)
            print(f"reid: {error}", file=sys.stderr)
            remaining = [later.notebook.stem for later in runs[position + 1 :]]
            if remaining:
                print(f"reid: not run: {', '.join(remaining)}", file=sys.stderr)
            return 1
        print(f"{seconds[run.name]:7.1f} s", flush=True)
    print(f"{'total':<{width}} {sum(seconds.values()):7.1f} s")
    return 0


def list_notebooks(options: argparse.Namespace) -> None:
    """Each notebook with its first heading, and its parameters with their defaults."""
    print(_listing(), end="")


def _listing() -> str:
    from reidlib import runner

    listing = ""
    for notebook in runner.notebooks():
        defaults = "  ".join(f"{name}={default!r}" for name, default in notebook.parameters.items())
        listing += f"  {notebook.stem}: {notebook.title}\n"
        listing += textwrap.indent(textwrap.fill(defaults, 110, break_on_hyphens=False), " " * 6) + "\n"
    return listing


def show_results(options: argparse.Namespace) -> None:
    """The metrics of every run in outputs/, in percent: mean over seeds, and ± the standard deviation."""
    from reidlib import results

    found = results.find_results(outputs_dir())
    if found.empty:
        print(f"No results in {outputs_dir()} yet; `reid run` makes some.", file=sys.stderr)
        return
    summary = results.summarise(found if options.csv else results.without_rounds(found))
    print(summary.to_csv(index=False) if options.csv else results.as_text(summary) + "\n", end="")


def check_dataset(options: argparse.Namespace) -> int:
    """Read a data set, count it against the published figures, and look for missing or damaged files."""
    from reidlib.data import check, load

    data = load(options.dataset, options.root)
    print(data.found)
    report = check(data)
    print(report)
    return 0 if report.ok else 1


def make_toy(options: argparse.Namespace) -> None:
    """Draw the toy world to data/toy; nothing is done when it is there already."""
    from reidlib.data import toy

    toy.make(data_dir() / "toy")
    print(f"The toy world is in {data_dir() / 'toy'}")
