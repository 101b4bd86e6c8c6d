"""Planning needs no kernel; the few tests that start one share the notebooks they run."""

import ast
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from reidlib import paths, runner
from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.runner import Notebook, NotebookError, check_data, execute, parse_value, plan, run_name, select
from reidlib.tests.figures import unseen

PARAMETERS = 'dataset = "toy"\nseed = 0\nlr = 0.1\nfast = False\noverrides = {}\nrounds = [1]\nrun = "{stem}"'


def write(folder, stem, *cells, parameters=PARAMETERS):
    """A notebook like those of the project: prose, parameters, then `cells` of code."""
    tagged = new_code_cell(parameters.replace("{stem}", stem), metadata={"tags": ["parameters"]})
    notebook = new_notebook(
        cells=[new_markdown_cell(f"Before.\n# About {stem}\nAfter."), tagged, *map(new_code_cell, cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}},
    )
    path = folder / f"{stem}.ipynb"
    nbformat.write(notebook, path)
    return Notebook(path)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Four notebooks and an empty outputs folder."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for stem in ("00_start_here", "02_clip_baseline", "12_adapt_interactreid", "20_evaluate"):
        write(folder, stem, parameters=PARAMETERS + ("\nepochs = 3" if stem[0] == "1" else ""))
    monkeypatch.setattr(runner, "notebooks_dir", lambda: folder)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return folder


def stems(chosen):
    return [notebook.stem for notebook in chosen]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ["00_start_here", "02_clip_baseline", "12_adapt_interactreid", "20_evaluate"]),
        (["02"], ["02_clip_baseline"]),
        (["2"], ["02_clip_baseline"]),
        (["0"], ["00_start_here"]),
        (["02_clip_baseline"], ["02_clip_baseline"]),
        (["notebooks/02_clip_baseline.ipynb"], ["02_clip_baseline"]),
        (["12_ad"], ["12_adapt_interactreid"]),
        (["evaluate"], ["20_evaluate"]),
        (["20", "12", "20_evaluate"], ["20_evaluate", "12_adapt_interactreid"]),
    ],
)
def test_select(shelf, names, expected):
    assert stems(select(names)) == expected


def test_select_names_the_nearest(shelf):
    with pytest.raises(ConfigError, match="'clip_base_line'; the nearest is '02_clip_baseline'"):
        select(["clip_base_line"])
    for strange in ("7", "99", "nosuch"):
        with pytest.raises(ConfigError, match=f"{strange!r}; known are 00_start_here, 02_clip_baseline,"):
            select([strange])


def test_select_without_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    with pytest.raises(DataError, match="no notebook"):
        select([])


def test_title_and_parameters(shelf):
    notebook = Notebook(shelf / "02_clip_baseline.ipynb")
    assert notebook.title == "About 02_clip_baseline"
    assert notebook.parameters == {
        "dataset": "toy", "seed": 0, "lr": 0.1, "fast": False, "overrides": {}, "rounds": [1],
        "run": "02_clip_baseline",
    }  # fmt: skip


@pytest.mark.parametrize("source", ["seed = 1 + x", "import os", "a, b = 1, 2", "seed = = 1", "seed: int"])
def test_parameters_must_be_literals(tmp_path, source):
    with pytest.raises(DataError, match="parameters cell"):
        _ = write(tmp_path, "01_x", parameters=source).parameters


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}'])
def test_a_file_that_is_no_notebook(tmp_path, text):
    (tmp_path / "01_x.ipynb").write_text(text)
    with pytest.raises(DataError, match="01_x.ipynb cannot be read as a notebook"):
        _ = Notebook(tmp_path / "01_x.ipynb").title


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-5", 1e-5), ("True", True), ("[1, 2]", [1, 2]), ("{'epochs': 3}", {"epochs": 3}), ("'7'", "7"),
     ("toy", "toy"), ("pku-sketch", "pku-sketch"), ("", ""), ("a b", "a b"), ("1 + 1", "1 + 1"), ("data/x", "data/x")],
)  # fmt: skip
def test_parse_value(text, value):
    assert parse_value(text) == value


@given(st.text())
def test_parse_value_never_fails(text):
    value = parse_value(text)
    assert value == text or ast.literal_eval(text) == value or value != value


def planned(shelf, names, parameters, name=None):
    return plan(select(names), parameters, name)


def test_plan_injects_the_run_and_keeps_what_was_given(shelf):
    [run] = planned(shelf, ["02"], {"seed": 1, "dataset": "pku-sketch", "lr": 1})
    assert run.name == "02_clip_baseline+dataset=pku-sketch+lr=1.0+seed=1"
    assert run.parameters == {"seed": 1, "dataset": "pku-sketch", "lr": 1.0, "run": run.name}
    assert type(run.parameters["lr"]) is float


def test_plan_without_parameters_uses_the_stem(shelf):
    assert [run.name for run in planned(shelf, [], {})] == stems(select([]))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("seed", 1.5), ("seed", "one"), ("seed", True), ("fast", 1), ("lr", "x"), ("lr", True), ("dataset", 3),
     ("overrides", [1]), ("rounds", {})],
)  # fmt: skip
def test_plan_refuses_a_wrong_type(shelf, parameter, value):
    with pytest.raises(ConfigError, match=f"'{parameter}' of 02_clip_baseline is of type"):
        planned(shelf, ["02"], {parameter: value})


def test_plan_refuses_an_override_that_is_a_parameter(shelf):
    with pytest.raises(ConfigError, match="overrides names 'seed', which is a parameter of 02_clip_baseline itself"):
        planned(shelf, ["02"], {"overrides": {"seed": 1}})


def test_plan_refuses_an_unknown_parameter_and_names_the_nearest(shelf):
    with pytest.raises(ConfigError, match="'datset'; the nearest is 'dataset'"):
        planned(shelf, ["02"], {"datset": "toy"})
    with pytest.raises(ConfigError, match="'epochs'"):
        planned(shelf, ["02", "20"], {"epochs": 1})


def test_a_parameter_goes_to_the_notebooks_that_know_it(shelf):
    first, second = planned(shelf, ["02", "12"], {"epochs": 1, "seed": 2})
    assert "epochs" not in first.parameters and first.skipped == ("epochs",)
    assert first.name == "02_clip_baseline+seed=2"
    assert second.parameters["epochs"] == 1 and second.skipped == ()


WITH_SETTINGS = """
from reidlib.methods.clip import ClipConfig
config = ClipConfig.preset(preset, max_steps=max_steps, **overrides)
"""


@pytest.fixture
def training(tmp_path):
    """A notebook that trains: it knows presets, overrides and whether it goes on."""
    parameters = (
        'dataset = "toy"\nroot = ""\npreset = "toy"\nmax_steps = 0\noverrides = {}\nresume = True\nrun = "02_x"'
    )
    return write(tmp_path, "02_x", WITH_SETTINGS, parameters=parameters + "\nresume = True")


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"dataset": "cukh-pedes"}, "There is no data set 'cukh-pedes'; the nearest is 'cuhk-pedes'"),
        ({"dataset": "nosuch"}, "There is no data set 'nosuch'; known are"),
        ({"dataset": "folder", "root": "/nowhere"}, "root should name a folder; there is none at /nowhere"),
        ({"root": __file__}, f"root should name a folder; there is none at {__file__}"),
        ({"preset": "papper"}, "There is no preset 'papper'"),
        ({"overrides": {"epoch": 3}}, "ClipConfig has no setting 'epoch'; the nearest is 'epochs'"),
        ({"overrides": {"epochs": "three"}}, "ClipConfig.epochs should be int"),
        ({"overrides": {"sampler": "best"}}, "ClipConfig.sampler should be 'random', 'identity' or 'length'"),
        ({"max_steps": -5}, "ClipConfig.max_steps should be at least 0 and got -5"),
        ({"epochs": 3}, "No parameter of 02_x is called 'epochs'; it is a setting of the method: "
                        "-p overrides \"{'epochs': 3}\""),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_a_kernel_starts(training, tmp_path, monkeypatch, parameters, complaint):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        plan([training], parameters)
    assert not (tmp_path / "outputs").exists()


def test_a_data_set_that_is_not_here_is_refused_before_a_kernel_starts(training, tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_DATA", str(tmp_path / "data"))
    check_data(plan([training], {}))
    check_data(plan([training], {"dataset": "toy+toy/icfg-pedes"}))
    with pytest.raises(DataError, match="cuhk-pedes is not at"):
        check_data(plan([training], {"dataset": "toy+cuhk-pedes"}))
    with pytest.raises(DataError, match="cuhk-pedes is not at .*; put reid_raw.json"):
        check_data(plan([training], {"dataset": "cuhk-pedes"}))


def test_folders_are_meant_from_where_the_command_is_given(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [("root", "2024"), ("max_steps", "3"), ("overrides", "{'epochs': 2}"), ("dataset", "7")]
    assert runner.given(texts, [training]) == {
        "root": str(tmp_path / "2024"), "max_steps": 3, "overrides": {"epochs": 2}, "dataset": "7"
    }  # fmt: skip
    assert runner.given([("root", "")], [training]) == {"root": ""}
    (tmp_path / "a_model").mkdir()
    models = [("model", "a_model"), ("model", "02_clip_baseline/text")]
    assert [runner.given([model], [])["model"] for model in models] == [str(tmp_path / "a_model"), models[1][1]]
    assert runner.given([("dataset", "'7'")], [training]) == {"dataset": "7"}


def test_resume_does_not_name_a_run(training):
    [planned] = plan([training], {"resume": False})
    assert planned.name == "02_x" and planned.parameters["resume"] is False


def test_a_given_run_name(shelf):
    [run] = planned(shelf, ["02"], {"seed": 1}, "mine")
    assert run.name == run.parameters["run"] == "mine"
    with pytest.raises(ConfigError, match="one notebook"):
        planned(shelf, ["02", "12"], {}, "mine")
    for bad in ("../mine", "a/b", "", ".hidden", "a b"):
        with pytest.raises(ConfigError, match="may only hold"):
            planned(shelf, ["02"], {}, bad)


def test_a_notebook_that_declares_no_run_gets_none(tmp_path):
    notebook = write(tmp_path, "05_x", parameters="seed = 0")
    [run] = plan([notebook], {"seed": 4})
    assert run.parameters == {"seed": 4} and run.name == "05_x+seed=4"


def test_run_name_does_not_depend_on_order():
    assert run_name("02", {"a": 1, "b": 2}) == run_name("02", {"b": 2, "a": 1}) == "02+a=1+b=2"


@given(st.dictionaries(st.text("abc", min_size=1), st.text() | st.integers() | st.lists(st.integers()), max_size=4))
def test_run_name_is_a_plain_file_name_of_limited_length(parameters):
    name = run_name("02_x", parameters)
    assert name.startswith("02_x") and len(name) <= runner.LONGEST_RUN_NAME
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=+-")


def test_values_that_look_alike_as_file_names_get_two_runs():
    assert run_name("02", {"x": [1, 2]}) != run_name("02", {"x": (1, 2)})
    assert run_name("02", {"x": "y" * 200 + "1"}) != run_name("02", {"x": "y" * 200 + "2"})


# From here on kernels run.


def run_it(folder, outputs, monkeypatch, stem, *cells, parameters=None):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(outputs))
    [run] = plan([write(folder, stem, *cells)], parameters or {})
    return execute(run), outputs / run.name


def cell_states(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell["metadata"]["papermill"]["status"] for cell in cells if "papermill" in cell["metadata"]]


def test_a_good_notebook_leaves_its_executed_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "elsewhere"))
    seconds, folder = run_it(
        tmp_path, tmp_path / "outputs", monkeypatch, "02_good",
        "import os, sys; print(sys.executable, run, seed, os.getcwd(), 'JUPYTER_PATH' in os.environ)",
        parameters={"seed": 3},
    )  # fmt: skip
    assert folder.name == "02_good+seed=3" and seconds > 0
    assert [path.name for path in folder.glob("[!.]*")] == ["executed.ipynb"]
    printed = nbformat.read(folder / "executed.ipynb", 4).cells[-1].outputs[0].text
    assert printed.split() == [sys.executable, "02_good+seed=3", "3", str(tmp_path), "False"]
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "elsewhere")


def test_every_figure_is_saved_and_shown_once(tmp_path, monkeypatch):
    _, folder = run_it(
        tmp_path, tmp_path / "outputs", monkeypatch, "02_figures",
        "import matplotlib.pyplot as plt\nfrom reidlib import viz\nfrom reidlib.runs import Run\nresults = Run(run)",
        "figure = viz.recall_curves({'CLIP': [10, 20]})\nresults.figure('of viz', figure)",
        "figure, axes = plt.subplots()\naxes.plot([1, 2])\nresults.figure('its own', figure)",
    )  # fmt: skip
    shown = [out for cell in nbformat.read(folder / "executed.ipynb", 4).cells for out in cell.get("outputs", [])]
    assert ["image/png" in out.data for out in shown] == [True, True] and not unseen(tmp_path / "outputs")
    assert shown[0].metadata["image/png"]["alt"] == "of viz"
    (folder / "figures" / "unseen.png").touch()
    [sentence] = unseen(tmp_path / "outputs")
    assert sentence.endswith("shows 2 pictures; expected the 3 in its figures/ at least.")


def test_a_failing_cell_keeps_the_partial_and_the_earlier_good_notebook(tmp_path, monkeypatch):
    folder = tmp_path / "outputs" / "02_bad"
    folder.mkdir(parents=True)
    (folder / "executed.ipynb").write_text("an earlier good one")
    with pytest.raises(NotebookError) as caught:
        run_it(
            tmp_path, tmp_path / "outputs", monkeypatch, "02_bad", "print('before')", "x = 1\nx / 0", "print('after')"
        )
    message = str(caught.value)
    for part in ("02_bad, cell In [4] failed", "x / 0", "ZeroDivisionError: division by zero",
                 str(folder / "executed.partial.ipynb")):  # fmt: skip
        assert part in message
    assert (folder / "executed.ipynb").read_text() == "an earlier good one"
    assert cell_states(folder / "executed.partial.ipynb")[-1] == "pending"
    assert "before" in (folder / "executed.partial.ipynb").read_text()


def test_an_error_of_ours_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(NotebookError) as caught:
        run_it(tmp_path, tmp_path / "outputs", monkeypatch, "02_ours",
               "from reidlib.errors import DataError", "raise DataError('a.json, record 3: no id.')")  # fmt: skip
    first, second = str(caught.value).splitlines()
    assert first == "02_ours, cell In [4]: a.json, record 3: no id." and "executed.partial.ipynb" in second


def test_trainings_are_taken_up_only_where_the_last_execution_did_not_finish(tmp_path, monkeypatch):
    cells = ["print(resume)\nimport pathlib\nassert not pathlib.Path('trouble').exists()"]
    parameters = 'resume = True\nrun = "02_again"'
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    [planned] = plan([write(tmp_path, "02_again", *cells, parameters=parameters)], {})
    folder = tmp_path / "outputs" / "02_again"

    def printed(name):
        return nbformat.read(folder / f"{name}.ipynb", 4).cells[-1].outputs[0].text.strip()

    (tmp_path / "trouble").touch()
    with pytest.raises(NotebookError):
        execute(planned)
    assert printed("executed.partial") == "False"
    (tmp_path / "trouble").unlink()
    execute(planned)
    assert printed("executed") == "True"
    execute(planned)
    assert printed("executed") == "False"


def test_one_process_writes_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    [planned] = plan([write(tmp_path, "02_x")], {})
    lock = paths.run_dir("02_x") / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from pathlib import Path; from reidlib import paths\n"
         "with paths.owned(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)", lock],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ReidError, match="Another run is writing .*02_x; wait until it has ended"):
        execute(planned)
    holder.kill()
    holder.wait()
    execute(planned)  # the system frees what a killed process held


def test_folders_given_from_here_are_the_same_in_the_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REIDLIB_DATA", "pictures")
    (tmp_path / "notebooks").mkdir()
    cell = "from reidlib import paths\nprint(paths.data_dir(), paths.run_dir(run))"
    _, folder = run_it(tmp_path / "notebooks", pathlib.Path("made"), monkeypatch, "02_here", cell)
    printed = nbformat.read(tmp_path / folder / "executed.ipynb", 4).cells[-1].outputs[0].text
    assert printed.split() == [str(tmp_path / "pictures"), str(tmp_path / "made" / "02_here")]


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_dead_kernel_is_one_sentence_and_later_cells_are_pending(tmp_path, monkeypatch, end):
    with pytest.raises(NotebookError, match="02_dead: the kernel died") as caught:
        run_it(tmp_path, tmp_path / "outputs", monkeypatch, "02_dead", "import os", end, "print('after')")
    assert "\n" not in str(caught.value)
    states = cell_states(tmp_path / "outputs" / "02_dead" / "executed.partial.ipynb")
    assert states[-3:] == ["completed", "failed", "pending"]


def test_ctrl_c_ends_the_kernel_with_130(tmp_path):
    started = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))"
    notebook = write(tmp_path, "02_long", started, "time.sleep(60)", "print('after')")
    code = (
        "import pathlib, sys; from reidlib import cli, runner; "
        f"runner.notebooks_dir = lambda: pathlib.Path({str(notebook.path.parent)!r}); sys.exit(cli.main(['run']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "REIDLIB_OUTPUTS": str(tmp_path / "outputs")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "reid: interrupted" in complaint.splitlines()  # beside what the kernel's client may say of its own
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    [kept] = (tmp_path / "outputs" / "02_long").glob("[!.]*")
    assert kept.name == "executed.partial.ipynb"
    assert cell_states(kept)[-2:] == ["failed", "pending"]
