"""Runs notebooks with papermill: checks parameters first, names the run, keeps what a failure leaves behind."""

import ast
import hashlib
import json
import os
import re
import reprlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path

from reidlib import errors
from reidlib.config import Config
from reidlib.errors import ConfigError, DataError, ReidError, nearest
from reidlib.paths import data_dir, in_checkout, inside, notebooks_dir, outputs_dir, owned, run_dir
from reidlib.progress import REPORT, Line

LONGEST_RUN_NAME = 120
NOTEBOOK = "reidlib_notebook"  # in an executed copy's metadata: the stem of the notebook that was run
PATHS = ("root", "folder")  # parameters that name a folder, meant from where the command is given
MODELS = ("model", "stage1", "start")  # parameters that name a model, which may be a file or a folder
UNNAMED = ("run", "resume")  # parameters that leave the run's name as it is
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

    def config(self) -> type[Config] | None:
        """The class of its settings: what a line `config = ...Config.preset(preset, ...)` names; None without one."""
        code = "\n".join(cell["source"] for cell in self.cells if cell["cell_type"] == "code")
        if found := re.search(r"^config = (?:\w+\.)?(\w+)\.preset\(preset\b", code, re.MULTILINE):
            for module in re.findall(r"^from reidlib\.methods(?:\.| import )(\w+)", code, re.MULTILINE):
                if config := getattr(import_module(f"reidlib.methods.{module}"), found[1], None):
                    return config
        return None


@dataclass(frozen=True)
class Execution:
    """What is planned: the notebook, the parameters it is given, and the name of its run, a folder in outputs/."""

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
        raise DataError(f"There is no notebook in {notebooks_dir()}; expected those of the project.")
    chosen = {}
    for name in names:
        found = [notebook for notebook in everything if _is_called(notebook.stem, name)]
        if not found:
            raise ConfigError(f"No notebook is called {name!r}; {nearest(name, [one.stem for one in everything])}.")
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


def given(texts: list[tuple[str, str]], chosen: list[Notebook]) -> dict[str, object]:
    """Parameters from the command line: what is text by default stays text ("2024"), folders are made absolute."""
    values = {}
    for name, text in texts:
        defaults = [notebook.parameters[name] for notebook in chosen if name in notebook.parameters]
        value = parse_value(text)
        if any(isinstance(default, str) for default in defaults) and not isinstance(value, str):
            value = text
        if value and (name in PATHS or name in MODELS and Path(value).expanduser().exists()):
            value = str(Path(value).expanduser().absolute())
        values[name] = value
    return values


def plan(chosen: list[Notebook], parameters: dict[str, object], name: str | None = None) -> list[Execution]:
    """What would be run, every parameter checked before a kernel starts: its name, its type, and what it says.

    A parameter must be known to one of the notebooks at least and goes to those that know it. `name` replaces the
    name that the run would get from its notebook and parameters. Raises ConfigError.
    """
    known = {parameter: None for notebook in chosen for parameter in notebook.parameters}
    for parameter, value in parameters.items():
        if parameter not in known:
            asked = " or ".join(notebook.stem for notebook in chosen) if len(chosen) < 3 else "the notebooks"
            hint = _as_override(chosen, parameter, value) or nearest(parameter, known)
            raise ConfigError(f"No parameter of {asked} is called {parameter!r}; {hint}.")
    if name is not None and len(chosen) > 1:
        raise ConfigError(f"One run name ({name!r}) cannot serve {len(chosen)} notebooks; name one notebook.")
    if name is not None and (not name or name != _sanitised(name) or len(name) > LONGEST_RUN_NAME):
        raise ConfigError(
            f"The run name {reprlib.repr(name)} may only hold letters, digits and _ . = + - (not a dot in front), "
            f"{LONGEST_RUN_NAME} of them at most."
        )
    return [_plan_one(notebook, parameters, name) for notebook in chosen]


def _as_override(chosen: list[Notebook], name: str, value: object) -> str:
    """How to give a setting of a method that was taken for a parameter; empty where it is none."""
    classes = [notebook.config() for notebook in chosen if "overrides" in notebook.parameters]
    if not any(hasattr(found, name) for found in classes if found):
        return ""
    return f'it is a setting of the method: -p overrides "{ {name: value} }"'


def _plan_one(notebook: Notebook, parameters: dict[str, object], name: str | None) -> Execution:
    values = {key: _checked(notebook, key, value) for key, value in parameters.items() if key in notebook.parameters}
    for key in notebook.parameters.keys() & values.get("overrides", {}):
        raise ConfigError(f"overrides names {key!r}, which is a parameter of {notebook.stem} itself: -p {key} VALUE.")
    if "dataset" in values:
        _check_dataset(values["dataset"])
    toy = str(values.get("dataset", notebook.parameters.get("dataset"))).startswith("toy")
    for key in values.keys() & set(PATHS):
        drawn = key == "root" and toy and not Path(values[key]).exists()  # the toy world is made there
        if values[key] and not Path(values[key]).is_dir() and not drawn:
            raise ConfigError(f"{key} should name a folder; there is none at {values[key]}.")
    settings = {key: values[key] for key in ("preset", "max_steps", "overrides") if key in values}
    if settings and (config := notebook.config()):
        preset, overrides = settings.pop("preset", notebook.parameters["preset"]), settings.pop("overrides", {})
        config.preset(preset, **settings, **overrides)  # refuses what it does not know
    name = name or run_name(notebook.stem, {key: value for key, value in values.items() if key not in UNNAMED})
    if "run" in notebook.parameters:
        values["run"] = name
    return Execution(notebook, values, name, tuple(key for key in parameters if key not in notebook.parameters))


def _check_dataset(name: str) -> None:
    from reidlib.data.load import names, toys

    for part in name.split("+"):  # several are joined
        if part not in (*names, *toys):
            raise ConfigError(f"There is no data set {part!r}; {nearest(part, toys if '/' in part else names)}.")


def check_data(planned: list[Execution]) -> None:
    """Raises DataError where a data set that one of the notebooks reads is not on this machine; a toy is drawn."""
    from reidlib.data.load import locate, toys

    for run in planned:
        parts = run.parameters.get("dataset", "toy").split("+")  # several are joined
        for name in parts if "root" in run.notebook.parameters else ():
            if name not in toys:
                locate(name, run.parameters.get("root") or None)


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


def plan_again(name: str) -> Execution:
    """The run of outputs/<name> once more, with the parameters it had, into the emptied outputs/.again/<name>.

    Raises DataError where no such run was finished, ConfigError where its notebook has other parameters now.
    """
    executed = inside(outputs_dir(), name) / "executed.ipynb"
    if not executed.is_file():
        finished = [path.parent.name for path in sorted(outputs_dir().glob("[!.]*/executed.ipynb"))]
        raise DataError(f"No run {name!r} was finished in {outputs_dir()}; {nearest(name, finished)}.")
    try:
        about = json.loads(executed.read_text(encoding="utf-8"))["metadata"]
        stem, parameters = about[NOTEBOOK], dict(about["papermill"]["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{executed} does not say how it was run ({error!r}); expected one by `reid run`.") from error
    parameters.pop("resume", None)
    [planned] = plan([Notebook(inside(notebooks_dir(), f"{stem}.ipynb"))], parameters)
    again = f"{AGAIN}/{name}"
    shutil.rmtree(inside(outputs_dir(), again), ignore_errors=True)
    return replace(planned, name=again, parameters=planned.parameters | {"run": again})


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


def earlier_seconds(planned: Execution) -> dict[str, float]:
    """What each cell took, by its id: in the last execution of this run, else of this notebook; empty without one."""
    executed = [path / "executed.ipynb" for path in outputs_dir().glob(f"{planned.notebook.stem}*")]
    executed = sorted(filter(Path.is_file, executed), key=lambda path: path.stat().st_mtime)
    for path in [outputs_dir() / planned.name / "executed.ipynb", *reversed(executed)]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            return {cell["id"]: float(cell["metadata"]["papermill"]["duration"] or 0) for cell in cells}
    return {}


def execute(planned: Execution, later: float = 0.0) -> float:
    """Run one notebook to outputs/<run>/executed.ipynb and return its seconds.

    On a terminal a line says where it is; `later` are the seconds that what comes after it should take.

    It grows as executed.partial.ipynb and takes its final name only when the last cell is done, so an earlier good
    notebook survives a failure. A partial copy left by an earlier execution says that it did not finish: only then are
    its trainings taken up (the notebook's parameter `resume`). Raises NotebookError when a cell fails or the kernel
    dies, ReidError where the copy cannot be written or another process is executing the same run; KeyboardInterrupt
    ends the kernel and passes on.
    """
    folder = run_dir(planned.name)
    with owned(folder / ".lock", folder):
        return _execute(planned, folder, later)


def _execute(planned: Execution, folder: Path, later: float) -> float:
    import nbformat
    import papermill
    from papermill.engines import papermill_engines

    notebook = nbformat.read(planned.notebook.path, as_version=4)
    notebook.metadata[NOTEBOOK] = planned.notebook.stem
    partial = folder / "executed.partial.ipynb"
    parameters = planned.parameters
    if "resume" in planned.notebook.parameters:
        parameters = {"resume": partial.exists(), **parameters}
    started = time.perf_counter()
    report = folder / ".progress"
    line = Line(planned.name, notebook.cells, earlier_seconds(planned), later, report)
    papermill_engines.register("reidlib", _engine(line))
    try:
        with _kernel_of_this_interpreter(report), line:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters,
                kernel_name="python3",
                cwd=planned.notebook.path.parent if in_checkout() else Path.cwd(),
                engine_name="reidlib",
                progress_bar=False,
                extra_arguments=["--log-level=CRITICAL"],  # a kernel's own notes would clutter the terminal
            )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{_describe(error, planned)}\nWhat ran is kept in {partial}") from error
    except RuntimeError as error:  # nbclient's DeadKernelError, jupyter_client's RuntimeError at the start
        _mark_unfinished(partial)
        raise NotebookError(
            f"{planned.notebook.stem}: the kernel died (killed, out of memory, or ended by the code itself): {error}; "
            f"what ran is kept in {partial}"
        ) from error
    except OSError as error:  # papermill saves after every cell
        raise ReidError(
            f"{planned.notebook.stem}: {error}; {folder} could not be written; the executed notebook before is "
            "untouched."
        ) from error
    except KeyboardInterrupt:
        _mark_unfinished(partial)
        raise
    finally:
        report.unlink(missing_ok=True)
    partial.replace(folder / "executed.ipynb")
    return time.perf_counter() - started


def _engine(line: Line) -> type:
    """papermill's engine, telling `line` which cell is being executed."""
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            line.cells, cell_start = nb_man.nb.cells, nb_man.cell_start

            def started(cell, cell_index=None, **more):
                line.start_cell(cell_index or 0)
                return cell_start(cell, cell_index, **more)

            nb_man.cell_start = started
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    return Engine


@contextmanager
def _kernel_of_this_interpreter(report: Path) -> Iterator[None]:
    """`python3` means the interpreter that runs us, whatever kernels the user or the system has installed."""
    before = dict(os.environ)
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ |= {"REIDLIB_DATA": str(data_dir()), "REIDLIB_OUTPUTS": str(outputs_dir())}  # it works in another folder
    os.environ["TQDM_DISABLE"] = "1"  # a bar drawn again and again swells an executed copy; ours are drawn by Line
    os.environ[REPORT] = str(report)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _describe(error, planned: Execution) -> str:
    """A failing cell in words: one sentence for a ReidError, else the end of its source and the exception."""
    where = f"{planned.notebook.stem}, cell In [{error.exec_count}]"
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
