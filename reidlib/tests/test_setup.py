"""The ways to set the project up agree with each other and with what the README says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest
import yaml

import reidlib
from reidlib import paths
from reidlib.paths import CHECKOUT, notebooks_dir

INSTALL_AND_RUN = "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/reid run"
INSTALL_AND_TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest"

pytestmark = pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="not run from a checkout")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def distribution(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def test_the_packages_everyone_expects_are_dependencies(project):
    names = {distribution(requirement) for requirement in project["dependencies"]}
    assert names >= {
        "jupyterlab", "torch", "open-clip-torch", "ipywidgets", "matplotlib", "papermill", "pillow", "numpy"
    }  # fmt: skip


def test_the_conda_environment_agrees_with_pyproject(project):
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python {project['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[test]"]}
    assert "test" in project["optional-dependencies"]


def test_readme_holds_the_two_command_lines_that_ci_runs():
    lines = (CHECKOUT / "README.md").read_text().splitlines()
    assert lines.count(INSTALL_AND_RUN) == 1 and lines.count(INSTALL_AND_TEST) == 1


def test_ci_script_is_executable_and_is_bash():
    script = CHECKOUT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_the_command_of_pyproject_is_the_module(project):
    module, function = project["scripts"]["reid"].split(":")
    assert hasattr(__import__(module, fromlist=[function]), function)


def test_every_data_set_has_its_check_command_in_the_data_readme():
    text = (CHECKOUT / "data" / "README.md").read_text()
    for name in ["cuhk-pedes", "icfg-pedes", "rstpreid", "tri-pedes", "chatpedes", "mals", "pku-sketch",
                 "market-sketch-1k"]:  # fmt: skip
        assert f"`reid check {name}`" in text


def test_pre_commit_downloads_nothing():
    repos = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for repo in repos for hook in repo["hooks"]} == {"system"}


def test_the_map_of_the_package_names_every_room():
    rooms = {path.stem for path in paths.PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "tests", "query", "study"} <= set(re.findall(r"\w+", reidlib.__doc__))
    house = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert rooms - {"__init__", "tests"} <= set(re.findall(r"\w+", house))
    for name in re.findall(r"`(reidlib/[\w/.]+)`", house):
        assert (CHECKOUT / name).exists(), f"CONTRIBUTING.md names {name}"


def test_imports_go_one_way():
    """From top to bottom of CONTRIBUTING.md's table of rooms, and in no circle, inside functions neither."""
    table = re.findall(r"^\| (`.+?`) \|", (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    row = {room: number for number, rooms in enumerate(table) for room in re.findall(r"\w+", rooms)}
    files = {file.relative_to(paths.PACKAGE).with_suffix("").parts: file for file in paths.PACKAGE.rglob("*.py")}
    files = {".".join(parts).removesuffix(".__init__"): file for parts, file in files.items() if parts[0] != "tests"}
    imports = {module: imported(file, files) - {module} for module, file in files.items() if module != "__init__"}
    pairs = [(module, other) for module, others in imports.items() for other in others]
    upwards = [pair for pair in pairs if row[pair[0].split(".")[0]] < row[pair[1].split(".")[0]]]
    assert not upwards
    list(TopologicalSorter(imports).static_order())  # a CycleError names the circle
    assert {other for module, other in pairs if module.startswith("toyworld")} - {"errors"} <= {
        module for module in files if module.startswith("toyworld")
    }


def imported(file, modules):
    """Which of `modules` a file imports anywhere, but for what only type checkers read."""
    found, todo = set(), list(ast.parse(file.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        todo += ast.iter_child_nodes(node)
        names = [f"{alias.name}." for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            inner = name.removeprefix("reidlib.") if name.startswith("reidlib.") else ""
            found.add(inner if inner in modules else inner.rpartition(".")[0])
    return found & set(modules)


def test_the_command_starts_without_heavy_imports():
    """`reid --help` must not wait for what only some commands need."""
    code = "import sys, reidlib.cli, reidlib.runner; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "pandas", "papermill", "nbformat"} & set(printed.split())


def test_installed_without_a_checkout_it_works_in_the_working_folder(tmp_path, toy_root):
    """The wheel in a folder of its own: notebooks come with it, data/ and outputs/ go to where it is called."""
    source, site, here = tmp_path / "source", tmp_path / "site", tmp_path / "here"
    for part in ("reidlib", "notebooks", "docs"):
        shutil.copytree(CHECKOUT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    files = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "CONTRIBUTING.md"]
    for file in [*files, "data/README.md", "outputs/README.md"]:
        (source / file).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / file, source / file)
    shutil.copytree(toy_root, here / "data" / "toy", symlinks=True)  # drawn already
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    quietly = {"check": True, "capture_output": True, "text": True}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], **quietly)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], **quietly)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REIDLIB")}
    ran = subprocess.run(
        [sys.executable, site / "bin" / "reid", "run", "00"],
        cwd=here, env=environment | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in here.iterdir()) == ["data", "outputs"]
    assert (here / "outputs" / "00_start_here" / "executed.ipynb").is_file()
    assert len(list((site / "reidlib" / "notebooks").glob("*.ipynb"))) == len(list(notebooks_dir().glob("*.ipynb")))
    for file in ("py.typed", "docs/index.md", "docs/data.md", "docs/contributing.md", "notebooks/images/panel.png"):
        assert (site / "reidlib" / file).is_file()


def test_a_copy_of_the_notebooks_writes_beside_its_folder(tmp_path, monkeypatch):
    for name in ("REIDLIB_OUTPUTS", "REIDLIB_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "in_checkout", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert paths.outputs_dir() == tmp_path / "outputs" and paths.notebooks_dir() == paths.PACKAGE / "notebooks"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / paths.FIRST_NOTEBOOK).touch()
    assert paths.notebooks_dir() == tmp_path / "notebooks"
    monkeypatch.chdir(tmp_path / "notebooks")
    assert paths.data_dir() == tmp_path / "data" and paths.notebooks_dir() == tmp_path / "notebooks"
