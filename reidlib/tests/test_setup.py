"""The ways to set the project up agree with each other and with what the README says."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from reidlib.paths import CHECKOUT

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


def test_the_command_starts_without_heavy_imports():
    """`reid --help` must not wait for what only some commands need."""
    code = "import sys, reidlib.cli, reidlib.runner; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "pandas", "papermill", "nbformat"} & set(printed.split())
