"""The book: pages of the executed notebooks, the results and the package, made by Sphinx; read without a network."""

import ast
import copy
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from reidlib import __version__, results
from reidlib.errors import ReidError
from reidlib.paths import CHECKOUT, PACKAGE, in_checkout, notebooks_dir, outputs_dir
from reidlib.runner import Notebook, notebooks

# Titles of the course's parts, by the first digit of their notebooks
PARTS = {"0": "Begin", "1": "The methods", "2": "Results", "3": "Search", "4": "Cost"}
# Pages that lie elsewhere in a checkout
PROSE = {"data.md": "data/README.md", "runs.md": "outputs/README.md", "contributing.md": "CONTRIBUTING.md"}
NOT_RUN = "*Not executed yet; `reid run {}` and then `reid book` show its figures here.*"
MATHJAX = "tex-svg.js"  # one file that draws formulas without fonts; the package below brings it
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(folder: Path) -> list[str]:
    """Builds the book of everything in outputs/ in `folder`; returns what Sphinx complains about.

    Raises ReidError where what it is built with is not installed.
    """
    try:
        import myst_nb  # noqa: F401
        import sphinx_book_theme  # noqa: F401
        from sphinx.application import Sphinx
        from sphinx.util.console import nocolor
    except ImportError as error:
        raise ReidError(f"The book needs {error.name}; pip install 'reidlib[book]' brings it.") from error
    source = outputs_dir() / ".cache" / "book"
    shutil.rmtree(source, ignore_errors=True)
    write_sources(source)
    complaints, pages = _Complaints(), source / ".html"
    nocolor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Sphinx(source, None, pages, source / ".doctrees", "html", SETTINGS, status=None, warning=complaints)
        app.build(force_all=True)
    logging.getLogger("sphinx").handlers.clear()
    if app.statuscode:
        raise ReidError(f"The book could not be built: {' '.join(complaints.lines[-3:])}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(pages, folder)
    return complaints.lines


class _Complaints:
    """Sphinx writes its warnings here."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines += [line for line in text.splitlines() if line.strip()]

    def flush(self) -> None:
        pass


SETTINGS = {
    "project": "Finding a person",
    "author": "the reidlib authors",
    "version": __version__,
    "extensions": ["myst_nb"],
    "html_theme": "sphinx_book_theme",
    "html_title": "Finding a person",
    "html_context": {"default_mode": "auto"},
    "html_theme_options": {
        "show_toc_level": 2,
        "use_fullscreen_button": False,
        "navbar_persistent": [],
        "pygments_dark_style": "github-dark",
    },
    "mathjax_path": MATHJAX,
    "html_css_files": ["book.css"],
    "html_static_path": ["static"],
    "html_show_copyright": False,
    "html_show_sphinx": False,
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_output_stderr": "remove",
    "nb_merge_streams": True,
    "nb_ipywidgets_js": {},
    "suppress_warnings": ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"],
}


# -- the sources ---------------------------------------------------------------------------------------------------


def write_sources(folder: Path) -> None:
    """The pages as Sphinx reads them: prose, notebooks, results, package."""
    (folder / "static").mkdir(parents=True)
    (folder / "static" / "book.css").write_text(CSS)
    mathjax = find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
    shutil.copy(Path(mathjax, "static", "mathjax", MATHJAX), folder / "static")
    docs = CHECKOUT / "docs" if in_checkout() else PACKAGE / "docs"
    pages = {path.name: path for path in docs.glob("*.md")}
    if in_checkout():
        pages |= {name: CHECKOUT / path for name, path in PROSE.items()}
    for name, path in pages.items():
        (folder / name).write_text(_flat(path.read_text(encoding="utf-8")), encoding="utf-8")
    images = (place / "images" for place in (notebooks_dir(), PACKAGE / "notebooks"))  # a copy out has none
    shutil.copytree(next(filter(Path.is_dir, images)), folder / "images")
    course = notebooks()
    for notebook in course:
        (folder / notebook.path.name).write_text(json.dumps(_page(notebook)), encoding="utf-8")
    (folder / "results.md").write_text(_results(), encoding="utf-8")
    _write_api(folder / "api")
    for figures in outputs_dir().glob("*/figures"):
        shutil.copytree(figures, folder / "figures" / figures.parent.name)
    index = folder / "index.md"
    lines = [line for line in index.read_text(encoding="utf-8").splitlines() if _shows_something(line, folder)]
    index.write_text("\n".join(lines) + _contents(folder, [notebook.stem for notebook in course]), encoding="utf-8")


def _shows_something(line: str, folder: Path) -> bool:
    """False for a picture of a run that was not made yet."""
    picture = re.match(r"!\[.*\]\((figures/.+)\)", line)
    return picture is None or (folder / picture[1]).is_file()


def _flat(text: str) -> str:
    """Prose with its links as they are in the book, where all pages lie beside each other."""
    for name, path in PROSE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(path)}", f"]({name}", text)
    return re.sub(r"\]\((?:\.\./)?(?:notebooks|docs)/", "](", text)


def _page(notebook: Notebook) -> dict:
    """The notebook as it was executed last, best without parameters; else as it is, with a line that says so.

    What only a live page can show is left out.
    """
    executed = sorted(outputs_dir().glob(f"{notebook.stem}*/executed.ipynb"), key=lambda path: path.stat().st_mtime)
    plain = outputs_dir() / notebook.stem / "executed.ipynb"
    shown = plain if plain in executed else [notebook.path, *executed][-1]
    content = copy.deepcopy(json.loads(shown.read_text(encoding="utf-8")))
    content["metadata"] = {key: content["metadata"][key] for key in ("kernelspec", "language_info")}
    content["cells"] = [cell for cell in content["cells"] if not _says_only_its_run(cell)]
    for cell in content["cells"]:
        cell["metadata"] = {"tags": [tag for tag in cell["metadata"].get("tags", []) if tag == "parameters"]}
        cell["outputs"] = [one for one in cell.get("outputs", []) if WIDGET not in one.get("data", {})]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    if shown is notebook.path:
        note = {"cell_type": "markdown", "id": "not-run", "metadata": {}, "source": NOT_RUN.format(notebook.stem[:2])}
        content["cells"].insert(1, note)
    return content


def _says_only_its_run(cell: dict) -> bool:
    """True for papermill's cell where it sets nothing but the run's name and whether it goes on."""
    lines = "".join(cell["source"]).splitlines()
    named = all(re.match(r"# Parameters|run = |resume = ", line) for line in lines)
    return "injected-parameters" in cell["metadata"].get("tags", []) and named


def _contents(folder: Path, stems: list[str]) -> str:
    """The tables of contents below the front page: the course by its parts, then what is around it."""
    parts = {title: [stem for stem in stems if stem[0] == digit] for digit, title in PARTS.items()}
    parts["Results"] = [
        name for name in (*parts["Results"], "toyworld", "results") if _exists(folder, name) or name in stems
    ]
    around = ["running", "data", "searching", "models", *sorted(path.stem for path in folder.glob("*.md")), "api/index"]
    taken = {"index", *(stem for part in parts.values() for stem in part)}
    parts["Reference"] = [name for name in dict.fromkeys(around) if name not in taken and _exists(folder, name)]
    trees = (f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(names) for title, names in parts.items())
    return "\n\n" + "\n```\n\n".join(trees) + "\n```\n"


def _exists(folder: Path, name: str) -> bool:
    return (folder / f"{name}.md").is_file()


def _results() -> str:
    found = results.find_results(outputs_dir())
    text = "# All results\n\nEvery run in outputs/, in percent: mean over seeds ± standard deviation. `reid results`\n"
    text += "prints the same; {doc}`20_evaluate` adds intervals and paired tests.\n"
    if found.empty:
        return text + "\nNothing was measured yet.\n"
    for title, table in results.blocks(results.summarise(results.without_rounds(found))):
        text += f"\n## {title}\n\n{results.as_markdown(table)}"
    return text


# -- the package -----------------------------------------------------------------------------------------------------


def _write_api(folder: Path) -> None:
    """A page for each module or room of the package, made from its docstrings without importing it."""
    folder.mkdir()
    rooms = sorted(path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    names = []
    for room in rooms:
        files = [room] if room.is_file() else sorted(room.rglob("*.py"), key=lambda path: (path.name[0] != "_", path))
        if room.stem in ("tests", "__init__", "__main__"):
            continue
        names.append(room.stem)
        (folder / f"{room.stem}.md").write_text("\n".join(map(_module, files)), encoding="utf-8")
    about = _prose(ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or "")
    text = f"# The package\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n"
    (folder / "index.md").write_text(text, encoding="utf-8")


def _module(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    level = "#" if file.parent == PACKAGE or file.name == "__init__.py" and file.parent.parent == PACKAGE else "##"
    return f"{level} {name}\n\n{_prose(ast.get_docstring(tree) or '')}\n\n" + "\n".join(_members(tree, level + "#"))


def _members(node: ast.Module | ast.ClassDef, level: str) -> Iterator[str]:
    """Public classes with their methods, and public functions, that say what they are for."""
    for member in node.body:
        if not isinstance(member, ast.ClassDef | ast.FunctionDef) or member.name.startswith("_"):
            continue
        if not (about := ast.get_docstring(member)):
            continue
        if isinstance(member, ast.ClassDef):
            line = f"class {member.name}({', '.join(map(ast.unparse, member.bases))})".replace("()", "")
        else:
            returns = f" -> {ast.unparse(member.returns)}" if member.returns else ""
            line = f"{member.name}({ast.unparse(member.args)}){returns}"
        yield f"{level} {member.name}\n\n```python\n{line}\n```\n\n{_prose(about)}\n"
        if isinstance(member, ast.ClassDef):
            yield from _members(member, level + "#")


def _prose(docstring: str) -> str:
    """A docstring as Markdown: `code` stays, indented blocks become literal, everything else is taken as written."""
    paragraphs = []
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append(f"```text\n{paragraph}\n```")
        else:
            pieces = re.split(r"(`[^`]+`)", paragraph)
            pieces[::2] = [re.sub(r"([\\*_\[\]<>$#|~{}])", r"\\\1", piece) for piece in pieces[::2]]
            paragraphs.append("".join(pieces))
    return "\n\n".join(paragraphs)


CSS = """\
/* Tables wider than a phone scroll by themselves; formulas too. */
.bd-article table { display: block; width: fit-content; max-width: 100%; overflow-x: auto; }
.bd-article div.math { overflow-x: auto; overflow-y: hidden; }
.bd-article pre { font-size: .8em; overflow-x: auto; }
.bd-article :is(h1, h2, h3, h4, h5, p, li, code) { overflow-wrap: anywhere; }
.bd-article :is(td, th), .bd-article :is(td, th) p { overflow-wrap: normal; }
.bd-article table.dataframe :is(td, th) { white-space: nowrap; }
"""
