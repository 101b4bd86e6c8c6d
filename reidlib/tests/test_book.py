"""The book: built from a few executed notebooks, then read as a visitor would, without a network."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import nbformat
import pytest

from reidlib import book
from reidlib.paths import notebooks_dir
from reidlib.tests.test_results import row
from reidlib.tests.test_results import write as write_metrics

pytest.importorskip("sphinx_book_theme")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A book of two executed notebooks, twelve that were not, and one run's results."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDLIB_OUTPUTS", str(outputs))
        write_metrics(outputs, "02_clip_baseline", [row(61.234)])
        for stem in ("00_start_here", "10_train_cfine"):
            notebook = nbformat.read(notebooks_dir() / f"{stem}.ipynb", 4)
            cell = next(cell for cell in reversed(notebook.cells) if cell.cell_type == "code")
            cell.outputs = [picture_output(), widget_output(), stderr_output()]
            notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {}}}}
            folder = outputs / f"{stem}+seed=1" if stem == "00_start_here" else outputs / stem
            folder.mkdir(exist_ok=True)
            nbformat.write(notebook, folder / "executed.ipynb")
        assert book.build(outputs / "book") == [], "what Sphinx complains about is a mistake of ours"
        yield outputs / "book"


def picture_output():
    from base64 import b64encode
    from io import BytesIO

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return nbformat.v4.new_output("display_data", {"image/png": b64encode(buffer.getvalue()).decode()})


def widget_output():
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "Chat(children=...)"}
    return nbformat.v4.new_output("display_data", data)


def stderr_output():
    return nbformat.v4.new_output("stream", name="stderr", text="noise of a library")


class Links(HTMLParser):
    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if (
            tag in ("img", "script")
            and attributes.get("src")
            or tag == "link"
            and attributes.get("rel") == "stylesheet"
        ):
            self.loaded.append(attributes.get("src") or attributes["href"])


def test_every_link_leads_somewhere_and_nothing_is_fetched(pages):
    found = {page: Links(page) for page in pages.rglob("*.html") if "_static" not in page.parts}
    assert len(found) > 30
    for page, links in found.items():
        for link in links.links + links.loaded:
            if re.match(r"(https?|mailto):", link):
                assert link not in links.loaded, f"{page.name} loads {link}"
                continue
            target, _, anchor = link.partition("#")
            file = (page.parent / target.split("?")[0]).resolve() if target else page
            assert file.exists(), f"{page.name} links {link}"
            if anchor and file in found:
                assert anchor in found[file].ids, f"{page.name} links {link}"


def test_pages_say_what_they_should(pages):
    def text(name):
        return (pages / f"{name}.html").read_text(encoding="utf-8")

    assert "61.23" in text("results")
    for stem in ("00_start_here", "10_train_cfine"):
        assert "_images/" in text(stem) and "Not executed yet" not in text(stem)
        assert "Chat(children" not in text(stem) and "noise of a library" not in text(stem)
    assert "Not executed yet" in text("11_train_cffa")
    assert "def " not in text("api/losses") and "Tensor" in text("api/losses")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


PAGES = ("index", "00_start_here", "10_train_cfine", "results", "api/losses", "data", "contributing")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_without_a_network(pages, browser, width, theme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, offline=True)
    page = context.new_page()
    trouble = []
    page.on("requestfailed", lambda request: trouble.append(request.url))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    for name in PAGES:
        page.goto((pages / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the window"
        broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
        assert page.evaluate(broken) == []
        if name == "10_train_cfine":
            page.wait_for_selector("mjx-container svg")
            assert page.locator("mjx-container [data-mjx-error]").count() == 0
        red = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red < 60 if theme == "dark" else red > 200
    assert not trouble
    context.close()


def test_search_finds_a_method(pages, browser):
    page = browser.new_page()
    page.goto((pages / "search.html").as_uri() + "?q=projection")
    page.wait_for_selector("ul.search li a")
    assert any("CFine" in title for title in page.locator("ul.search li a").all_text_contents())
    page.close()
