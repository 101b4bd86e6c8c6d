"""What every committed notebook must be; running them is `reid run`'s part."""

import ast
import json
import subprocess
import sys

import nbformat
import pytest

from reidlib.paths import CHECKOUT, notebooks_dir
from reidlib.runner import Notebook

LONGEST_CELL = 20
EXPECTED = {"dataset": str, "preset": str, "seed": int, "run": str, "overrides": dict}


@pytest.fixture(params=sorted(notebooks_dir().glob("*.ipynb")), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def content(path):
    return nbformat.read(path, as_version=4)


def code_cells(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def test_is_valid_and_cells_have_ids(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(raw)
    assert (raw["nbformat"], raw["nbformat_minor"]) >= (4, 5)
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(ids) == len(set(ids))


def test_holds_no_outputs(content):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(content))
    assert "widgets" not in content.metadata and "papermill" not in content.metadata


def test_names_its_kernel_and_language(content):
    assert content.metadata.kernelspec.name == "python3"
    assert content.metadata.language_info.name == "python"


def test_shows_figures_by_saving_them(content):
    source = "\n".join(cell.source for cell in code_cells(content))
    assert "plt.show(" not in source and "display(figure)" not in source, "`results.figure` saves and shows"
    if "plt." in source:
        assert "results.figure(" in source
        assert "import viz" in source or "reidlib.viz" in source, "it sets the style"


def test_begins_with_prose_under_a_heading(content):
    assert content.cells[0].cell_type == "markdown" and content.cells[0].source.startswith("# ")


def test_begins_with_the_line_that_installs_it_elsewhere(content):
    assert code_cells(content)[0].source.startswith("# %pip install -q ")


def test_code_cells_fit_a_screen(content):
    long = [cell.source for cell in code_cells(content) if len(cell.source.splitlines()) > LONGEST_CELL]
    assert not long, f"longer than {LONGEST_CELL} lines:\n{long[0] if long else ''}"


def test_has_one_cell_of_parameters_that_holds_only_literals(content):
    [cell] = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1
        ast.literal_eval(statement.value)


def test_declares_the_common_parameters(path):
    parameters = Notebook(path).parameters
    assert parameters["run"] == path.stem
    for name in parameters.keys() & EXPECTED.keys():
        assert type(parameters[name]) is EXPECTED[name]
    assert parameters.get("dataset", "toy") == "toy" and parameters.get("preset", "toy") == "toy"
    assert parameters.get("seed", 0) == 0 and parameters.get("overrides", {}) == {}


def test_trained_models_are_described_by_what_other_notebooks_ask_for(path, content):
    source = "\n".join(cell.source for cell in code_cells(content))
    if "preset" in Notebook(path).parameters and "fit(" in source:
        [describe] = [line for line in source.splitlines() if ".describe(" in line]
        assert "data, config, seed=seed, preset=preset" in describe


def test_ruff_is_content():
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", notebooks_dir()],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
