"""The `reid` command: runs the notebooks without a browser, shows results, checks data sets."""

import argparse
import inspect
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reidlib import __version__
from reidlib.errors import ConfigError, ReidError, nearest
from reidlib.paths import FIRST_NOTEBOOK, data_dir, notebooks_dir, outputs_dir

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

BENCHMARKS = ("steps", "parts", "query", "arithmetic", "memory", "evaluation", "search", "encoding", "pictures", "onnx")
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], str, tuple]] = {}


def argument(*names: str, **options: Any) -> tuple[tuple, dict]:
    """An argument of a command, as ArgumentParser.add_argument takes it."""
    return names, options


def command(name: str, help_text: str, *arguments: tuple[tuple, dict]) -> Callable:
    """Makes a function the command `reid NAME`; its docstring is what `reid NAME --help` says.

    It gets the parsed arguments and returns the exit status, None for 0. A ReidError becomes one sentence.
    """

    def register(function: Callable) -> Callable:
        COMMANDS[name] = function, help_text, arguments
        return function

    return register


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


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help ends with text that is made only when it is asked for."""

    closing: Callable[[], str] = staticmethod(str)

    def format_help(self) -> str:
        return super().format_help() + self.closing()


def build_parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="reid", description=ABOUT, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"reid {__version__}")
    parser.set_defaults(command=lambda _: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (function, help_text, arguments) in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=inspect.getdoc(function), formatter_class=raw)
        sub.set_defaults(command=function)
        for names, options in arguments:
            sub.add_argument(*names, **options)
    commands.choices["run"].closing = lambda: "\nnotebooks:\n" + _listing()
    return parser


def _width() -> int:
    """Columns of the terminal; of a file or a pipe as many as most screens have."""
    return shutil.get_terminal_size((110, 24)).columns


@command(
    "run",
    "run notebooks without a browser",
    argument("names", nargs="*", metavar="NOTEBOOK", help="number, name or its beginning; none means all"),
    argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter; the value is a Python literal, or else text",
    ),
    argument("--run", metavar="NAME", help="the folder in outputs/ (default: the notebook and its parameters)"),
)  # fmt: skip
def run_notebooks(options: argparse.Namespace) -> int:
    """Run notebooks in order, each from its own kernel, to outputs/<run>/executed.ipynb.

    Parameters are checked before a kernel starts. A notebook that fails ends the command; what ran is kept in
    outputs/<run>/executed.partial.ipynb.
    """
    from reidlib import runner

    chosen = runner.select(options.names)
    parameters = runner.given(options.parameters, chosen)
    name = options.run if options.run is not None else parameters.pop("run", None)
    runs = runner.plan(chosen, parameters, name)
    runner.check_data(runs)
    for run in runs:
        for parameter in run.skipped:
            print(f"{run.notebook.stem} has no parameter {parameter!r} and runs without it")
    expected = [sum(runner.earlier_seconds(run).values()) for run in runs]
    if all(expected) and len(runs) > 1:
        print(f"{len(runs)} notebooks, about {sum(expected) / 60:.0f} min by earlier runs")
    seconds = {}
    width = max(len(run.name) for run in runs)
    for position, run in enumerate(runs):
        if not sys.stderr.isatty():  # a terminal has the line that tells how far it is
            print(f"{run.name:<{width}} ", end="", flush=True)
        try:
            seconds[run.name] = runner.execute(run, sum(expected[position + 1 :]))
        except runner.NotebookError as error:
            print(f"{run.name if sys.stderr.isatty() else ''} failed", flush=True)
            print(f"reid: {error}", file=sys.stderr)
            remaining = [later.notebook.stem for later in runs[position + 1 :]]
            if remaining:
                print(f"reid: not run: {', '.join(remaining)}", file=sys.stderr)
            return 1
        print(f"{f'{run.name:<{width}} ' if sys.stderr.isatty() else ''}{seconds[run.name]:7.1f} s", flush=True)
    print(f"{'total':<{width}} {sum(seconds.values()):7.1f} s")
    _tell_where(list(seconds))
    return 0


def _tell_where(names: list[str]) -> None:
    """At the end of a run: its results, and where everything lies."""
    from reidlib import results

    found = results.without_rounds(results.find_results(outputs_dir()))
    found = found[found["run"].isin(names) & ~found["task"].str.startswith("mix ")]  # 20_evaluate has a table of mixes
    if len(found):
        print(f"\n{results.as_text(results.summarise(found), _width())}", end="")
    folder = outputs_dir() / (names[0] if len(names) == 1 else "<run>")
    print(f"\nThe executed notebooks are {folder / 'executed.ipynb'}, with figures/ and checkpoints beside them.")
    book = outputs_dir() / "book" / "index.html"
    last = f", last at {book}" if book.exists() else ""
    print(f"`reid results` compares all runs; `reid book` makes pages of them{last}.")


@command("list", "the notebooks and their parameters")
def list_notebooks(options: argparse.Namespace) -> None:
    """Each notebook with its first heading, and its parameters with their defaults."""
    print(_listing(), end="")


def _listing() -> str:
    from reidlib import runner

    listing = ""
    for notebook in runner.notebooks():
        defaults = "  ".join(f"{name}={default!r}" for name, default in notebook.parameters.items() if name != "run")
        for indent, text in ((2, f"{notebook.stem}: {notebook.title}"), (6, defaults)):
            lines = textwrap.wrap(text, max(_width() - indent - 1, 30), break_on_hyphens=False, subsequent_indent="  ")
            listing += "".join(f"{'':{indent}}{line}\n" for line in lines)
    return listing


@command(
    "results",
    "one table of all runs in outputs/",
    argument("--csv", action="store_true", help="comma-separated values, unrounded"),
)
def show_results(options: argparse.Namespace) -> None:
    """The metrics of every run in outputs/, in percent: mean over seeds, and ± the standard deviation.

    Runs with other settings of one method get lines of their own. The table leaves out columns where the terminal is
    narrow; --csv has all of them.
    """
    from reidlib import results

    found = results.find_results(outputs_dir())
    if found.empty:
        print(f"No results in {outputs_dir()} yet; `reid run` makes some.", file=sys.stderr)
        return
    summary = results.summarise(found if options.csv else results.without_rounds(found))
    print(results.as_csv(summary) if options.csv else results.as_text(summary, _width()), end="")


@command(
    "reproduce",
    "run a run again and compare its metrics",
    argument("run", metavar="RUN", help="the folder in outputs/"),
)
def reproduce(options: argparse.Namespace) -> int:
    """Run the notebook of a run again with the parameters it had, and compare every value of its metrics exactly.

    Prints "equal" (status 0), or what differs (status 1) and keeps the second run in outputs/.again/RUN. Warns where
    the code, the versions, the machine, the data or the models it is built on are not those of the first run.
    """
    from reidlib import results, runner

    run, first = runner.plan_again(options.run), outputs_dir() / options.run
    if not (first / "metrics.json").exists():
        raise ReidError(f"The run {options.run} measured nothing (it has no metrics.json), so nothing can be compared.")
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


@command(
    "check",
    "check a data set's files",
    argument("dataset", metavar="DATASET", help="cuhk-pedes, icfg-pedes, ... (data/README.md lists them)"),
    argument("--root", type=Path, help="its folder (default: its own name under data/)"),
)
def check_dataset(options: argparse.Namespace) -> int:
    """Read a data set, count it against the published figures, and look for missing or damaged files."""
    from reidlib.data import check, load

    data = load(options.dataset, options.root)
    print(data.found)
    report = check(data)
    print(report)
    return 0 if report.ok else 1


@command(
    "benchmark",
    "measure what the methods and the tools cost",
    argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none means all"),
    argument("--preset", choices=("toy", "paper"), default="toy", help="size of the models"),
)
def run_benchmarks(options: argparse.Namespace) -> None:
    """Measure training steps against bare ones, memory, evaluation, search in up to a million pictures, encoding by
    several workers, and the way from files to batches. Prints tables and writes them to
    outputs/benchmark.../benchmark.json with the machine's description. `memory` and `arithmetic` need no GPU for the
    paper's sizes; `steps` in the paper's sizes does.
    """
    import pandas as pd

    from reidlib import benchmarks, runner
    from reidlib.runs import Run

    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        raise ConfigError(f"Nothing to measure is called {min(unknown)!r}; {nearest(min(unknown), BENCHMARKS)}.")
    parameters = {"only": "-".join(options.names)} if options.names else {}
    parameters |= {"preset": options.preset} if options.preset != "toy" else {}
    run, found = Run(runner.run_name("benchmark", parameters)), {"machine": benchmarks.machine()}
    print("  ".join(f"{name}: {value}" for name, value in found["machine"].items() if value))
    for name in options.names or BENCHMARKS:
        found[name] = benchmarks.MEASUREMENTS[name](options.preset)
        print(f"\n{name}\n{pd.DataFrame(found[name]).to_string(index=False, float_format='{:.3g}'.format)}", flush=True)
        run.write_json("benchmark.json", found)
    print(f"\nWritten: {run.folder / 'benchmark.json'}")


@command(
    "import",
    "make a run of somebody else's checkpoint",
    argument("kind", metavar="KIND", help="whose: cfine, cffa, irra, rde, tbps-clip, mllm4text, ham, llava-reid, ..."),
    argument("file", metavar="FILE", type=Path, help="the checkpoint; for DiaNA its folder"),
    argument("--as", dest="name", metavar="NAME", required=True, help="what the run is called"),
    argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="settings",
             help="a setting of the method that the file does not tell, such as image_size \"(384, 128)\""),
)  # fmt: skip
def import_checkpoint(options: argparse.Namespace) -> None:
    """Turn a checkpoint that the official code of a method wrote into a run: every notebook, demo and command then
    takes it by name. Kinds: cfine, cffa, irra, rde, tbps-clip, mllm4text, ham, llava-reid, interactreid-1,
    interactreid, diana-1, diana (-1: the first of two stages). Nothing in the file is run, and nothing is fetched.
    """
    from reidlib.models import import_run
    from reidlib.runner import parse_value

    settings = {name: parse_value(value) for name, value in options.settings}
    model, folder = import_run(options.kind, options.file, options.name, **settings)
    height, width = model.image_size
    print(f"{folder} is a {model.name} for pictures of {height} x {width}; it reads {' and '.join(model.reads)}.")


@command(
    "export",
    "write a model for use elsewhere: open_clip's folder, ONNX, a model card",
    argument("model", metavar="MODEL", help="a run, <run>/<part>, or any other model by name"),
    argument("folder", metavar="FOLDER", type=Path, help="new or empty"),
    argument("--licence", default="", help="of the weights, for the card"),
)
def export_model(options: argparse.Namespace) -> None:
    """Write a model as open_clip reads it (where the method is one CLIP), as ONNX with a search script that needs
    numpy only, and as this workbook reads it, with a model card. Needs the extra: pip install 'reidlib[onnx]'.
    """
    from reidlib.export import export

    for line in export(options.model, options.folder, options.licence):
        print(line)


@command(
    "publish",
    "upload an exported folder to the Hugging Face hub",
    argument("folder", metavar="FOLDER", type=Path, help="that `reid export` wrote"),
    argument("repository", metavar="USER/NAME", help="made if it is not there"),
    argument("--public", action="store_true", help="visible to everybody (default: private)"),
)
def publish_model(options: argparse.Namespace) -> None:
    """Upload a folder of `reid export` with the token that `hf auth login` left. Read its README.md first."""
    from reidlib.export import publish

    print(publish(options.folder, options.repository, private=not options.public))


@command(
    "book",
    "make pages of the executed notebooks and the results",
    argument("--to", type=Path, metavar="FOLDER", help="default: book/ in outputs/"),
)
def make_book(options: argparse.Namespace) -> None:
    """Build a site of the executed notebooks in outputs/, the results and the package, to be opened in a browser.

    It needs no network, neither to be built nor to be read. Needs the extra: pip install 'reidlib[book]'.
    """
    from reidlib import book

    folder = (options.to or outputs_dir() / "book").absolute()
    for complaint in book.build(folder):
        warnings.warn(complaint, stacklevel=1)
    print(f"The book is {folder / 'index.html'}")


@command(
    "search",
    "search a folder of pictures by words, a sketch or a photo",
    argument("folder", metavar="FOLDER", help="of pictures, folders inside included"),
    argument("text", nargs="?", default="", metavar="TEXT", help='such as "a woman in a red coat"'),
    argument("--sketch", default="", metavar="FILE", help="a drawing of the person"),
    argument("--photo", default="", metavar="FILE", help="a picture of the person, or of somebody alike"),
    argument("--model", default="", metavar="NAME", help="a run, ARCH:TAG of open_clip, a file or folder, toy"),
    argument("-k", type=int, default=12, help="how many to show (default: 12)"),
    argument("--to", type=Path, default=Path("search.png"), metavar="FILE", help="contact sheet (default: search.png)"),
)
def search_folder(options: argparse.Namespace) -> None:
    """Print the pictures of FOLDER that fit best, with their scores, and draw them on a contact sheet.

    Text, sketch and photo may be given together. Pictures are encoded once; the next search takes seconds.
    """
    from reidlib.retrieval.report import contact_sheet
    from reidlib.widgets.app import search

    session, which = search(options.folder, options.text, options.sketch, options.photo, options.model)
    print(which)
    for rank, (_, image, score) in enumerate(session.results(options.k), 1):
        print(f"{rank:4}  {score:.3f}  {image}")
    contact_sheet(session, options.k).save(options.to)
    print(f"The contact sheet is {options.to}.")


@command(
    "app",
    "open the search panel on a folder of pictures in the browser",
    argument("folder", nargs="?", default="", metavar="FOLDER", help="of pictures; left out, the toy world's"),
    argument("--model", default="", metavar="NAME", help="a run, ARCH:TAG of open_clip, a file or folder, toy"),
    argument("--host", default="127.0.0.1", help="the address to serve (default: this machine alone)"),
    argument("--port", type=int, default=8866),
)
def open_app(options: argparse.Namespace) -> None:
    """Encode the pictures of FOLDER once and serve the search panel until Ctrl-C. Needs: pip install 'reidlib[app]'."""
    from reidlib.widgets.app import serve

    serve(options.folder, options.model, options.host, options.port)


@command("toy", "make the toy world (notebooks make it when they need it)")
def make_toy(options: argparse.Namespace) -> None:
    """Draw the toy world to data/toy; nothing is done when it is there already."""
    from reidlib import toyworld

    toyworld.make(data_dir() / "toy")
    print(f"The toy world is in {data_dir() / 'toy'}")


@command(
    "notebooks",
    "copy the notebooks to a folder, to step through",
    argument("folder", nargs="?", default="notebooks", type=Path, metavar="FOLDER", help="default: notebooks"),
)
def copy_notebooks(options: argparse.Namespace) -> None:
    """Copy the notebooks that came with the package to FOLDER, for JupyterLab; files that are there are left alone."""
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    copied = [path for path in sorted(notebooks_dir().glob("*.ipynb")) if not (folder / path.name).exists()]
    for path in copied:
        shutil.copyfile(path, folder / path.name)
    print(f"{len(copied)} notebooks copied; next: jupyter lab {folder / FIRST_NOTEBOOK}")
