"""Every command in README, in the book and in the notebooks' prose is one that works as it stands there."""

import ast
import json
import re
import shlex
import shutil
import tomllib

import pytest

from reidlib import models, runner
from reidlib.cli import COMMANDS, build_parser
from reidlib.paths import CHECKOUT, notebooks_dir

PROSE = ("README.md", "CONTRIBUTING.md", "data/README.md", "outputs/README.md", "docs/*.md")
pytestmark = pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="not run from a checkout")


def texts():
    """Markdown by the file it stands in."""
    for glob in PROSE:
        for file in sorted(CHECKOUT.glob(glob)):
            yield file.relative_to(CHECKOUT), file.read_text(encoding="utf-8")
    for file in sorted(notebooks_dir().glob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                yield file.relative_to(CHECKOUT), "".join(cell["source"])


def code(text):
    """Lines of shell blocks, and code within sentences, which may run over the end of a line."""
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    for piece in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield " ".join(piece.split())


def commands(program):
    """(file, arguments) of every call of `program`."""
    for file, text in texts():
        for line in code(text):
            for part in line.split(" && "):
                words = part.split("#")[0].strip()
                if re.match(rf"(\S*/)?{program}( |$)", words):
                    yield pytest.param(shlex.split(words)[1:], id=f"{file}: {words}")


@pytest.mark.parametrize("arguments", commands("reid"))
def test_a_command_is_accepted(arguments):
    if len(arguments) == 1 and arguments[0] in COMMANDS:  # the command spoken of, not a call of it
        return
    options = build_parser().parse_args(arguments)
    if arguments[:1] == ["run"] and "NAME" not in arguments:
        chosen = runner.select(options.names)
        parameters = runner.given(options.parameters, chosen)
        runner.plan(chosen, parameters, options.run or parameters.pop("run", None))


@pytest.mark.parametrize("arguments", commands("pip"))
def test_what_pip_is_told_to_install_is_offered(arguments):
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"\[(.+?)\]", " ".join(arguments)):
        assert set(asked.split(",")) <= set(extras)


@pytest.mark.parametrize("arguments", [*commands("jupyter"), *commands("conda")])
def test_files_that_are_named_exist(arguments):
    for word in arguments:
        if word.endswith((".ipynb", ".yml")):
            assert (CHECKOUT / word).is_file()


def test_every_command_is_told_of():
    told = {arguments.values[0][0] for arguments in commands("reid") if arguments.values[0]}
    assert set(COMMANDS) <= told


def test_every_extra_is_told_of():
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = (CHECKOUT / "docs" / "running.md").read_text(encoding="utf-8")
    assert set(extras) == set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE))


def test_python_in_prose_is_python():
    for file, text in texts():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for statement in ast.parse(block, str(file)).body:
                if isinstance(statement, ast.ImportFrom):
                    exec(compile(ast.Module([statement], []), str(file), "exec"), {})


def test_the_example_in_python_finds_pictures(toy_root, tmp_path, monkeypatch, capsys):
    text = (CHECKOUT / "docs" / "searching.md").read_text(encoding="utf-8")
    example, *_ = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_pictures").mkdir()
    for picture in sorted((toy_root / "CUHK-PEDES" / "imgs").rglob("*.jpg"))[:8]:
        shutil.copy(picture, tmp_path / "my_pictures")
    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name: load_model("toy"))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "searching.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5 and all(re.match(r"-?0\.\d{3}  .+\.jpg", line) for line in printed)
