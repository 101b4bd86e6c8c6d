"""Every command in README, in the book and in the notebooks' prose is one that works as it stands there."""

import ast
import json
import re
import shlex
import shutil
import tomllib
from types import SimpleNamespace

import pytest

from reidlib import benchmarks, models
from reidlib.cli import COMMANDS, main
from reidlib.paths import CHECKOUT, notebooks_dir
from reidlib.tests.test_results import row
from reidlib.tests.test_results import write as write_metrics

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


MODEL = SimpleNamespace(name="irra", image_size=(384, 128), reads=("text",))
STAND_INS = {  # for what takes minutes, a browser, a network, or files that are not here
    "reidlib.runner.execute": lambda planned, later: 1.0,
    "reidlib.runner.check_data": lambda planned: None,
    "reidlib.book.build": lambda folder: [],
    "reidlib.widgets.app.serve": lambda folder, model, host, port: None,
    "reidlib.models.import_run": lambda kind, file, name, **settings: (MODEL, name),
    "reidlib.export.export": lambda model, folder, licence: [model],
    "reidlib.export.publish": lambda folder, repository, private: repository,
}
NEEDS_DATA = ("check", "reproduce")  # of which one sentence says that they are not there


@pytest.fixture
def folder(tmp_path, toy_root, monkeypatch):
    """A working folder with pictures, where what is slow is left out of every command."""
    for name, stand_in in STAND_INS.items():
        monkeypatch.setattr(name, stand_in)
    for name in benchmarks.MEASUREMENTS:
        monkeypatch.setitem(benchmarks.MEASUREMENTS, name, lambda preset: [{"preset": preset}])
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "my_pictures").mkdir()
    for picture in sorted((toy_root / "CUHK-PEDES" / "imgs").rglob("*.jpg"))[:8]:
        shutil.copy(picture, tmp_path / "my_pictures")
    (tmp_path / "data" / "held-out").mkdir(parents=True)  # of which data/README.md tells
    write_metrics(tmp_path / "outputs", "02_clip_baseline", [row(61.234)])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", commands("reid"))
def test_a_command_runs(arguments, folder, capsys):
    required = {"check", "reproduce", "import", "export", "publish", "search"}
    if len(arguments) == 1 and arguments[0] in required:  # the command spoken of, not a call of it
        return
    status = main(arguments + ["--model", "toy"] * (arguments[:1] == ["search"]))
    said = capsys.readouterr()
    if arguments[:1] and arguments[0] in NEEDS_DATA:
        assert status == 2 and re.fullmatch(r"reid: .+\.\n", said.err)
    else:
        assert status == 0, said.err
        assert said.out or arguments[0] == "app"
    assert arguments[:1] != ["results"] or "61.23" in said.out
    assert arguments[:1] != ["search"] or len(re.findall(r"0\.\d{3}  .+\.jpg", said.out)) == 8
    assert arguments[:1] != ["notebooks"] or len(list(folder.glob("notebooks/*.ipynb"))) > 10


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
