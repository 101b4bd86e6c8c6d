"""Runs notebooks with papermill: checks parameters first, names the run, keeps what a failure leaves behind."""

import ast
import difflib
import hashlib
import json
import os
import re
import reprlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from reidlib import errors
from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.paths import inside, notebooks_dir, outputs_dir, run_dir

LONGEST_RUN_NAME = 120
NOTEBOOK = "reidlib_notebook"  # in an executed copy's metadata: the stem of the notebook that was run
AGAIN = ".again"  # in outputs/: hidden from results and from the notebooks that look for trained models


class NotebookError(Exception):
    """A notebook stopped before its end; the message is meant for the terminal and names what was kept."""


@dataclass(frozen=True)
class Notebook:
    path: Path

    @property
    def stem(self) -> str:
        return self.path.stem

    @cached_property
    def cells(self) -> list[dict]:
        """The cells as {"cell_type", "source", "metadata"}; a DataError when the file is no notebook."""
        try:
            cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
            return [{**cell, "source": "".join(cell["source"])} for cell in cells]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} cannot be read as a notebook ({error}); expected nbformat 4.") from error

    @property
    def title(self) -> str:
        """The first heading, or an empty string."""
        prose = "\n".join(cell["source"] for cell in self.cells if cell["cell_type"] == "markdown")
        heading = re.search(r"^#+ +(.+)$", prose, re.MULTILINE)
        return heading[1].strip() if heading else ""

    @cached_property
    def parameters(self) -> dict[str, object]:
        """Names and defaults of the cell tagged `parameters`; empty when there is none."""
        tagged = (cell for cell in self.cells if "parameters" in cell["metadata"].get("tags", []))
        cell = next(tagged, {"source": ""})
        try:
            assignments = ast.parse(cell["source"]).body
            return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in assignments}
        except (SyntaxError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path}: the parameters cell may only hold lines like `seed = 0`.") from error


@dataclass(frozen=True)
class Run:
    """One planned execution: the notebook, the parameters it is given, and the name of its folder in outputs/."""

    notebook: Notebook
    parameters: dict[str, object]
    name: str
    skipped: tuple[str, ...] = ()


def notebooks() -> list[Notebook]:
    """All notebooks of notebooks/, in order."""
    return [Notebook(path) for path in sorted(notebooks_dir().glob("*.ipynb"))]


def select(names: list[str]) -> list[Notebook]:
    """The notebooks called by number ("2", "02"), file, stem, or the beginning of a stem with or without its number."""
    everything = notebooks()
    if not everything:
        raise DataError(f"There is no notebook in {notebooks_dir()}; expected those of the checkout.")
    chosen = {}
    for name in names:
        found = [notebook for notebook in everything if _is_called(notebook.stem, name)]
        if not found:
            nearest = _nearest(name, [notebook.stem for notebook in everything])
            raise ConfigError(f"No notebook is called {name!r}; the nearest is {nearest!r}.")
        chosen |= dict.fromkeys(found)
    return list(chosen) if names else everything


def _is_called(stem: str, name: str) -> bool:
    number, _, title = stem.partition("_")
    name = Path(name).name.removesuffix(".ipynb")
    if name.isdecimal():
        return number.isdecimal() and int(number) == int(name)
    return bool(name) and (stem.startswith(name) or title.startswith(name))


def parse_value(text: str) -> object:
    """A Python literal where `text` is one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def plan(chosen: list[Notebook], parameters: dict[str, object], name: str | None = None) -> list[Run]:
    """What would be run, every parameter checked against the notebooks' defaults before a kernel starts.

    A parameter must be known to one of the notebooks at least and goes to those that know it. `name` replaces the
    name that the run would get from its notebook and parameters. Raises ConfigError.
    """
    known = {parameter: None for notebook in chosen for parameter in notebook.parameters}
    for parameter in parameters:
        if parameter not in known:
            asked = " or ".join(notebook.stem for notebook in chosen) if len(chosen) < 3 else "the notebooks"
            hint = f"the nearest is {_nearest(parameter, known)!r}" if known else "there are none"
            raise ConfigError(f"No parameter of {asked} is called {parameter!r}; {hint}.")
    if name is not None and len(chosen) > 1:
        raise ConfigError(f"One run name ({name!r}) cannot serve {len(chosen)} notebooks; name one notebook.")
    if name is not None and (not name or name != _sanitised(name) or len(name) > LONGEST_RUN_NAME):
        raise ConfigError(
            f"The run name {reprlib.repr(name)} may only hold letters, digits and _ . = + - (not a dot in front), "
            f"{LONGEST_RUN_NAME} of them at most."
        )
    return [_plan_one(notebook, parameters, name) for notebook in chosen]


def _plan_one(notebook: Notebook, parameters: dict[str, object], name: str | None) -> Run:
    given = {key: value for key, value in parameters.items() if key in notebook.parameters}
    for key, value in given.items():
        given[key] = _checked(notebook, key, value)
    for key in notebook.parameters.keys() & given.get("overrides", {}):
        raise ConfigError(f"overrides names {key!r}, which is a parameter of {notebook.stem} itself: -p {key} VALUE.")
    name = name or run_name(notebook.stem, given)
    if "run" in notebook.parameters:
        given["run"] = name
    return Run(notebook, given, name, tuple(key for key in parameters if key not in notebook.parameters))


def _checked(notebook: Notebook, name: str, value: object) -> object:
    """`value`, made a float where the default is one and a list of a tuple; ConfigError when it is not of the
    default's type, or nothing that a notebook's file can hold."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # what papermill would stumble over
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"The parameter {name!r} of {notebook.stem} should be made of ordinary text, numbers, lists and "
            f"dictionaries ({error})."
        ) from error
    expected = type(notebook.parameters[name])
    if expected is float and type(value) is int:
        return float(value)
    if expected is not type(None) and type(value) is not expected:
        raise ConfigError(
            f"The parameter {name!r} of {notebook.stem} is of type {expected.__name__} "
            f"(default {notebook.parameters[name]!r}); {reprlib.repr(value)} is of type {type(value).__name__}."
        )
    return value


def plan_again(name: str) -> Run:
    """The run of outputs/<name> once more, with the parameters it had, into the emptied outputs/.again/<name>.

    Raises DataError where no such run was finished, ConfigError where its notebook has other parameters now.
    """
    executed = inside(outputs_dir(), name) / "executed.ipynb"
    if not executed.is_file():
        finished = [path.parent.name for path in sorted(outputs_dir().glob("[!.]*/executed.ipynb"))]
        hint = f"the nearest that was is {_nearest(name, finished)!r}" if finished else "none was yet"
        raise DataError(f"No run {name!r} was finished in {outputs_dir()}; {hint}.")
    try:
        about = json.loads(executed.read_text(encoding="utf-8"))["metadata"]
        stem, parameters = about[NOTEBOOK], dict(about["papermill"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{executed} does not say how it was run ({error!r}); expected one by `reid run`.") from error
    [run] = plan([Notebook(inside(notebooks_dir(), f"{stem}.ipynb"))], parameters)
    again = f"{AGAIN}/{name}"
    shutil.rmtree(inside(outputs_dir(), again), ignore_errors=True)
    return replace(run, name=again, parameters=run.parameters | {"run": again})


def run_name(stem: str, parameters: dict[str, object]) -> str:
    """`02_clip_baseline+dataset=pku-sketch+seed=1`; a short hash ends a name that had to be changed or cut."""
    full = "+".join([stem, *(f"{key}={value}" for key, value in sorted(parameters.items()))])
    name = _sanitised(full)
    if name == full and len(name) <= LONGEST_RUN_NAME:
        return name
    mark = "-" + hashlib.sha256(full.encode()).hexdigest()[:8]
    return name[: LONGEST_RUN_NAME - len(mark)].rstrip("-") + mark


def _sanitised(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", name).strip("-").lstrip(".")


def _nearest(name: str, choices) -> str:
    """The choice most like `name`; a choice that holds it comes before one that is only spelled alike."""
    return max(choices, key=lambda choice: (name in choice, difflib.SequenceMatcher(None, name, choice).ratio()))


def execute(run: Run) -> float:
    """Run one notebook to outputs/<run>/executed.ipynb and return its seconds.

    It grows as executed.partial.ipynb and takes its final name only when the last cell is done, so an earlier good
    notebook survives a failure. Raises NotebookError when a cell fails or the kernel dies, ReidError where the copy
    cannot be written; KeyboardInterrupt ends the kernel and passes on.
    """
    import nbformat
    import papermill

    folder = run_dir(run.name)
    notebook = nbformat.read(run.notebook.path, as_version=4)
    notebook.metadata[NOTEBOOK] = run.notebook.stem
    partial = folder / "executed.partial.ipynb"
    partial.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        with _kernel_of_this_interpreter():
            papermill.execute_notebook(
                notebook,
                partial,
                run.parameters,
                kernel_name="python3",
                cwd=run.notebook.path.parent,
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=CRITICAL"],  # a kernel's own notes would clutter the terminal
            )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{_describe(error, run)}\nWhat ran is kept in {partial}") from error
    except RuntimeError as error:  # nbclient's DeadKernelError, jupyter_client's RuntimeError at the start
        _mark_unfinished(partial)
        raise NotebookError(
            f"{run.notebook.stem}: the kernel died (killed, out of memory, or ended by the code itself): {error}; "
            f"what ran is kept in {partial}"
        ) from error
    except OSError as error:  # papermill saves after every cell
        raise ReidError(
            f"{run.notebook.stem}: {error}; {folder} could not be written; the executed notebook before is untouched."
        ) from error
    except KeyboardInterrupt:
        _mark_unfinished(partial)
        raise
    partial.replace(folder / "executed.ipynb")
    return time.perf_counter() - started


@contextmanager
def _kernel_of_this_interpreter() -> Iterator[None]:
    """`python3` means the interpreter that runs us, whatever kernels the user or the system has installed."""
    before = dict(os.environ)
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # a bar drawn again and again swells an executed copy
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _describe(error, run: Run) -> str:
    """A failing cell in words: one sentence for a ReidError, else the end of its source and the exception."""
    where = f"{run.notebook.stem}, cell In [{error.exec_count}]"
    ours = getattr(errors, error.ename, None)
    if isinstance(ours, type) and issubclass(ours, ReidError):
        return f"{where}: {error.evalue}"
    source = "\n".join(f"    {line}" for line in error.source.rstrip().splitlines()[-5:])
    return f"{where} failed:\n{source}\n{error.ename}: {error.evalue}"


def _mark_unfinished(partial: Path) -> None:
    """Put right what papermill says of the cells of a stopped kernel: it calls all of them completed."""
    import nbformat

    try:
        notebook = nbformat.read(partial, as_version=4)
    except (FileNotFoundError, ValueError):  # stopped before or in the middle of a save
        partial.unlink(missing_ok=True)
        return
    states = [cell.metadata.papermill for cell in notebook.cells]
    begun = [state for state in states if state.start_time]
    for state in states:
        if not state.start_time:
            state.status = "pending"
    if begun:
        begun[-1].status, begun[-1].exception = "failed", True
    notebook.metadata.papermill.exception = True
    nbformat.write(notebook, partial)
