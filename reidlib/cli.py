"""The `reid` command: runs the notebooks without a browser, shows results, checks data sets."""

import argparse
import inspect
import sys
import textwrap
import warnings
from pathlib import Path

from reidlib.errors import ConfigError, ReidError
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
  reid reproduce 02_clip_baseline                      a run once more: does it come to the same numbers?
"""

BENCHMARKS = ("steps", "arithmetic", "memory", "evaluation", "search", "pictures")


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
    again = command(reproduce, "reproduce", "run a run again and compare its metrics")
    again.add_argument("run", metavar="RUN", help="the folder in outputs/")
    check = command(check_dataset, "check", "check a data set's files")
    check.add_argument("dataset", metavar="DATASET", help="cuhk-pedes, icfg-pedes, ... (data/README.md lists them)")
    check.add_argument("--root", type=Path, help="its folder (default: its own name under data/)")
    benchmark = command(run_benchmarks, "benchmark", "measure what the methods and the tools cost")
    benchmark.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none means all")
    benchmark.add_argument("--preset", choices=("toy", "paper"), default="toy", help="size of the models")
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


def reproduce(options: argparse.Namespace) -> int:
    """Run the notebook of a run again with the parameters it had, and compare every value of its metrics exactly.

    Prints "equal" (status 0), or what differs (status 1) and keeps the second run in outputs/.again/RUN. Warns where
    the code, the versions, the machine, the data or the models it is built on are not those of the first run.
    """
    import shutil

    from reidlib import results, runner

    run, first = runner.plan_again(options.run), outputs_dir() / options.run
    results.differences(first, first)  # is there anything to compare?
    try:
        print(f"{runner.execute(run):.1f} s")
    except runner.NotebookError as error:
        print(f"reid: {error}", file=sys.stderr)
        return 1
    second = outputs_dir() / run.name
    for sentence in results.other_conditions(first, second):
        warnings.warn(sentence, stacklevel=1)
    found = results.differences(first, second)
    if found.empty:
        print("equal")
        shutil.rmtree(second)
        return 0
    print(found.to_string(index=False))
    print(f"The second run is kept in {second}.")
    return 1


def check_dataset(options: argparse.Namespace) -> int:
    """Read a data set, count it against the published figures, and look for missing or damaged files."""
    from reidlib.data import check, load

    data = load(options.dataset, options.root)
    print(data.found)
    report = check(data)
    print(report)
    return 0 if report.ok else 1


def run_benchmarks(options: argparse.Namespace) -> None:
    """Measure training steps against bare ones, memory, evaluation, search in up to a million pictures, and the way
    from files to batches. Prints tables and writes them to outputs/benchmark.../benchmark.json with the machine's
    description. `memory` and `arithmetic` need no GPU for the paper's sizes; `steps` in the paper's sizes does.
    """
    import pandas as pd

    from reidlib import benchmarks, runner
    from reidlib.runs import Run

    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        raise ConfigError(f"Nothing to measure is called {min(unknown)!r}; expected {', '.join(BENCHMARKS)}.")
    parameters = {"only": "-".join(options.names)} if options.names else {}
    parameters |= {"preset": options.preset} if options.preset != "toy" else {}
    run, found = Run(runner.run_name("benchmark", parameters)), {"machine": benchmarks.machine()}
    print("  ".join(f"{name}: {value}" for name, value in found["machine"].items() if value))
    for name in options.names or BENCHMARKS:
        found[name] = benchmarks.MEASUREMENTS[name](options.preset)
        print(f"\n{name}\n{pd.DataFrame(found[name]).to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
        run.write_json("benchmark.json", found)
    print(f"\nWritten: {run.folder / 'benchmark.json'}")


def make_toy(options: argparse.Namespace) -> None:
    """Draw the toy world to data/toy; nothing is done when it is there already."""
    from reidlib import toyworld

    toyworld.make(data_dir() / "toy")
    print(f"The toy world is in {data_dir() / 'toy'}")
