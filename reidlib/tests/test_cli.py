import subprocess
import sys
from types import SimpleNamespace

import pytest

import reidlib
import reidlib.data
from reidlib import paths, runner
from reidlib.cli import main
from reidlib.errors import DataError
from reidlib.tests.test_results import row
from reidlib.tests.test_results import write as write_metrics
from reidlib.tests.test_runner import write as write_notebook


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Three notebooks whose execution is only recorded; "02" fails when told to."""
    for stem in ("00_start_here", "02_clip_baseline", "20_evaluate"):
        write_notebook(tmp_path, stem)
    executed = []

    def execute(run, later=0.0):
        executed.append(run)
        if run.parameters.get("dataset") == "mals" and run.notebook.stem.startswith("02"):
            raise runner.NotebookError("02_clip_baseline, cell In [3]: no such data set.")
        return 1.5

    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return executed


def test_run_everything_in_order_with_seconds_and_total(shelf, capsys):
    assert main(["run"]) == 0
    assert [run.name for run in shelf] == ["00_start_here", "02_clip_baseline", "20_evaluate"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["00_start_here", "1.5", "s"], ["02_clip_baseline", "1.5", "s"], ["20_evaluate", "1.5", "s"],
        ["total", "4.5", "s"],
    ]  # fmt: skip
    assert "executed.ipynb" in lines[-2] and "`reid book`" in lines[-1]


def test_the_end_of_a_run_shows_its_results(shelf, tmp_path, capsys):
    write_metrics(tmp_path / "outputs", "02_clip_baseline", [row(61.234)])
    write_metrics(tmp_path / "outputs", "elsewhere", [row(10.0, label="other")])
    assert main(["run", "2"]) == 0
    printed = capsys.readouterr().out
    assert "61.23" in printed and "other" not in printed


def test_parameters_and_run_name_reach_the_notebook(shelf):
    assert main(["run", "2", "-p", "seed", "3", "-p", "overrides", "{'epochs': 2}", "--run", "mine"]) == 0
    assert main(["run", "-p", "run", "yours", "2"]) == 0
    assert shelf[0].parameters == {"seed": 3, "overrides": {"epochs": 2}, "run": "mine"}
    assert shelf[1].name == "yours"


def test_nothing_runs_after_bad_input(shelf, capsys):
    for bad in (["nope"], ["2", "-p", "sed", "1"], ["2", "-p", "seed", "x"], ["--run", "mine"]):
        assert main(["run", *bad]) == 2
        output = capsys.readouterr()
        assert output.err.startswith("reid: ") and output.err.count("\n") == 1 and not output.out
    assert not shelf


def test_a_parameter_some_notebooks_lack_is_mentioned(shelf, tmp_path, capsys):
    write_notebook(tmp_path, "30_demo", parameters="steps = 1")
    assert main(["run", "-p", "steps", "2", "00", "30"]) == 0
    assert "00_start_here has no parameter 'steps'" in capsys.readouterr().out
    assert shelf[-1].parameters == {"steps": 2}


def test_a_failure_stops_and_names_what_remains(shelf, capsys):
    assert main(["run", "-p", "dataset", "mals"]) == 1
    assert [run.notebook.stem for run in shelf] == ["00_start_here", "02_clip_baseline"]
    complaint = capsys.readouterr().err
    assert "reid: 02_clip_baseline, cell In [3]: no such data set." in complaint
    assert "not run: 20_evaluate" in complaint


def test_an_interrupt_is_130(shelf, monkeypatch, capsys):
    monkeypatch.setattr(runner, "execute", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["run", "0"]) == 130
    assert capsys.readouterr().err.strip() == "reid: interrupted"


@pytest.mark.parametrize("arguments", [["list"], ["run", "--help"]])
def test_notebooks_are_listed_with_headings_and_defaults(shelf, capsys, arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
    printed = capsys.readouterr().out
    assert "02_clip_baseline: About 02_clip_baseline" in printed and "dataset='toy'  seed=0" in printed


def test_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    assert main(["results"]) == 0
    assert "No results" in capsys.readouterr().err
    write_metrics(tmp_path, "02", [row(61.234)])
    (tmp_path / "03").mkdir()
    (tmp_path / "03" / "metrics.json").write_text("{")
    assert main(["results"]) == 0
    output = capsys.readouterr()
    assert "61.23" in output.out and output.err.startswith("reid: warning: ") and "03" in output.err
    assert main(["results", "--csv"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.startswith("method,label,dataset") and "61.234" in line


def test_check_prints_what_was_found_and_the_report(monkeypatch, capsys):
    class Report(SimpleNamespace):
        def __str__(self):
            return "two files are missing"

    monkeypatch.setattr(
        reidlib.data, "load", lambda name, root: SimpleNamespace(found=f"{name} at {root}"), raising=False
    )
    monkeypatch.setattr(reidlib.data, "check", lambda data: Report(ok=False), raising=False)
    assert main(["check", "cuhk-pedes", "--root", "here"]) == 1
    assert capsys.readouterr().out.splitlines() == ["cuhk-pedes at here", "two files are missing"]


def test_a_toy_world_that_is_a_file_is_one_sentence(tmp_path, capsys):
    (tmp_path / "afile").touch()
    assert main(["check", "toy", "--root", str(tmp_path / "afile")]) == 2
    assert capsys.readouterr().err.endswith(
        "afile is a file; expected a folder that holds the toy world, or a name for one.\n"
    )


def test_a_mistake_in_the_data_is_one_sentence(monkeypatch, capsys):
    def load(name, root):
        raise DataError("reid_raw.json, record 3: no id.")

    monkeypatch.setattr(reidlib.data, "load", load, raising=False)
    assert main(["check", "cuhk-pedes"]) == 2
    assert capsys.readouterr().err == "reid: reid_raw.json, record 3: no id.\n"


def test_alone_it_shows_help_and_knows_its_version(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: reid")
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"reid {reidlib.__version__}\n"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_fit_the_terminal(shelf, tmp_path, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [row(60.0 + seed, seed, label="CLIP fine-tuned on captions and sketches") for seed in range(3)]
    write_metrics(tmp_path / "outputs", "02", rows)
    for command in ("list", "results"):
        assert main([command]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert max(map(len, printed)) <= width and len(printed) > 1
    assert "61.00 ± 1.00" in printed[-1]


def test_notebooks_are_copied_and_none_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00_start_here.ipynb").write_text("changed")
    assert main(["notebooks", "mine"]) == 0 and main(["notebooks"]) == 0
    assert (tmp_path / "mine" / "00_start_here.ipynb").read_text() == "changed"
    names = {path.name for path in paths.notebooks_dir().glob("*.ipynb")}
    assert {path.name for path in (tmp_path / "notebooks").iterdir()} == names
    assert f"{len(names) - 1} notebooks copied" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nope"], ["run", "-p", "seed"], ["check"]])
def test_wrong_use_is_explained(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: reid" in capsys.readouterr().err


def test_help_explains_the_commands_with_examples():
    printed = subprocess.run(
        [sys.executable, "-c", "from reidlib.cli import main; main(['--help'])"], capture_output=True, text=True
    ).stdout
    for part in ("run", "list", "results", "check", "toy", "examples:", "reid run 02 -p dataset cuhk-pedes"):
        assert part in printed
