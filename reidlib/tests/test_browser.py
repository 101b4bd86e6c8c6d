"""The panels in a real browser: headless Chromium on voila and on JupyterLab, with mouse and with touch."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from reidlib.tests.attribute_model import draw_table, people, picture
from reidlib.tests.ports import free_port

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZE = (48, 96)

CELL = """
import json
from pathlib import Path
from reidlib.retrieval import QuerySession
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, make_gallery
from reidlib.widgets import SearchPanel

session = QuerySession(AttributeModel(), make_gallery(Path("pictures"), 60, size={size}), QUESTIONS)
panel = SearchPanel(session, folder=Path("saved"), drawing={drawing})
refresh = panel.refresh

def note():  # what Python has received, for the test to read
    refresh()
    Path("received.json.part").write_text(json.dumps(session.history))
    Path("received.json.part").rename("received.json")

panel.refresh = note
panel
"""


def write_notebook(folder: Path, drawing: bool = False) -> Path:
    cell = nbformat.v4.new_code_cell(CELL.format(drawing=drawing, size=SIZE))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(book, folder / "demo.ipynb")
    return folder / "demo.ipynb"


class Server:
    """A Jupyter application on a free port, stopped by its process id."""

    def __init__(self, folder: Path, *command: str):
        self.port = free_port()
        env = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_DIR": str(folder / "config")}
        env.pop("JUPYTER_PATH", None)
        self.out = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={self.port}", "--no-browser"],
            cwd=folder, env=env, stdout=self.out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.wait_for(folder)

    def wait_for(self, folder: Path) -> None:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.25)
        pytest.fail("the server did not start within a minute")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.out.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


def voila(folder: Path, drawing: bool = False, *options: str) -> Server:
    write_notebook(folder, drawing)
    return Server(folder, "voila", "demo.ipynb", *options)


def received(folder: Path, kind: str, count: int) -> list[dict]:
    """Waits until Python has received so many acts of a kind."""
    history = []
    for _ in range(120):
        file = folder / "received.json"
        history = json.loads(file.read_text()) if file.exists() else []
        found = [event for event in history if event["kind"] == kind]
        if len(found) == count:
            return found
        time.sleep(0.25)
    raise AssertionError(f"expected {count} times {kind}, Python has {[event['kind'] for event in history]}")


def screenshot(page, name: str, whole: bool = False) -> None:
    """Kept where REIDLIB_SCREENSHOTS says, for people to look at."""
    if folder := os.environ.get("REIDLIB_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=whole)


def talk(page, folder: Path, name_of_place: str) -> None:
    """Turns, an answer by button, a like, an undo, a chip less, more, a picture enlarged and searched with.

    Checks what Python received and what the page shows.
    """
    page.wait_for_selector(".reid-chat", timeout=90_000)
    entry = page.locator(".reid-side input[type=text]")
    entry.fill("a red top <b>bold</b>")
    entry.press("Enter")
    assert received(folder, "say", 1)[0]["text"] == "a red top <b>bold</b>"
    page.locator(".reid-answers button", has_text="black").first.wait_for()
    entry.fill("blue trousers")
    page.locator(".reid-side .jupyter-button", has_text="Send").click()
    assert received(folder, "answer", 1)[0]["text"] == "blue trousers"
    page.wait_for_function("document.querySelectorAll('.reid-you').length === 2")
    page.locator(".reid-answers button", has_text="green").first.click()
    assert received(folder, "answer", 2)[1]["text"] == "green"
    page.wait_for_function("document.querySelectorAll('.reid-you').length === 3")
    assert page.locator(".reid-you").first.inner_text() == "a red top <b>bold</b>"
    assert page.locator(".reid-you b").count() == 0
    second = page.locator(".reid-card").nth(1)
    name = second.locator("img").get_attribute("title")
    second.get_by_role("button", name="More like this one").click()
    assert received(folder, "like", 1)[0]["image"] == name
    page.wait_for_selector(".reid-card.reid-like")
    assert page.locator(".reid-tray img").get_attribute("title") == name
    assert page.locator(".reid-picture img").first.evaluate("image => image.complete && image.naturalWidth") > 0
    screenshot(page, f"chat-{name_of_place}")
    page.locator(".reid-side .jupyter-button", has_text="Undo").click()
    received(folder, "like", 0)
    page.wait_for_function("!document.querySelector('.reid-tray img')")
    page.locator(".reid-chip button").first.click()
    received(folder, "forget", 1)
    page.wait_for_function("document.querySelectorAll('.reid-chip').length === 2")
    page.get_by_role("button", name="Show more").click()
    page.wait_for_function("document.querySelectorAll('.reid-card').length === 24")
    page.locator(".reid-picture").nth(2).click()
    page.wait_for_selector("dialog[open] img")
    page.locator("dialog").get_by_role("button", name="Search with this one").click()
    received(folder, "show", 1)
    page.locator(".reid-side .jupyter-button", has_text="Save").click()
    page.wait_for_function("document.body.innerText.includes('Saved session.json')")
    assert (folder / "saved" / "results.csv").exists()


def test_chat_in_voila(browser, tmp_path):
    server = voila(tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    try:
        page.goto(f"http://127.0.0.1:{server.port}/")
        talk(page, tmp_path, "voila")
    finally:
        page.close()
        server.stop()


def draw_line(page, points: list[tuple[float, float]]) -> None:
    box = page.locator(".reid-pad canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def touch_line(page, points: list[tuple[float, float]]) -> None:
    box = page.locator(".reid-pad canvas").bounding_box()
    places = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points]
    client = page.context.new_cdp_session(page)
    for kind, at in [("touchStart", [places[0]]), *[("touchMove", [p]) for p in places[1:]], ("touchEnd", [])]:
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})


def test_sketch_in_voila(browser, tmp_path):
    server = voila(tmp_path, True)
    context = browser.new_context(viewport={"width": 1280, "height": 860}, has_touch=True)
    page = context.new_page()
    try:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector(".reid-pad canvas", timeout=90_000)
        draw_line(page, [(0.3, 0.2), (0.7, 0.2)])
        stroke = received(tmp_path, "draw", 1)[0]["strokes"][0]
        assert stroke["points"][0] == pytest.approx([0.3, 0.2], abs=0.02)
        assert stroke["points"][-1] == pytest.approx([0.7, 0.2], abs=0.02)
        touch_line(page, [(0.2, 0.3), (0.2, 0.6), (0.8, 0.6)])
        strokes = received(tmp_path, "draw", 2)[1]["strokes"]
        assert len(strokes) == 2 and strokes[1]["points"][-1] == pytest.approx([0.8, 0.6], abs=0.02)
        page.get_by_role("button", name="Light").click()
        page.get_by_role("button", name="Broad").click()
        draw_line(page, [(0.5, 0.4), (0.5, 0.7)])
        shade = received(tmp_path, "draw", 3)[2]["strokes"][2]
        assert shade["ink"] < 0.5 < strokes[0]["ink"] and shade["width"] > strokes[0]["width"]
        colour = "([x, y]) => [...document.querySelector('.reid-pad canvas').getContext('2d')"
        colour += ".getImageData(200 * x * devicePixelRatio, 400 * y * devicePixelRatio, 1, 1).data].slice(0, 3)"
        assert page.evaluate(colour, [0.5, 0.5]) == [179] * 3 and page.evaluate(colour, [0.5, 0.6]) == [33] * 3
        entry = page.locator(".reid-side input[type=text]")
        entry.fill("a red top")
        entry.press("Enter")
        received(tmp_path, "say", 1)
        screenshot(page, "sketch-voila")
        page.locator(".reid-side .jupyter-button", has_text="Undo").click()
        received(tmp_path, "say", 0)
        page.get_by_role("button", name="Eraser").click()
        draw_line(page, [(0.5, 0.6), (0.5, 0.65)])
        assert received(tmp_path, "draw", 4)[3]["strokes"][3]["ink"] == 0
        page.wait_for_function(f"({colour})([0.5, 0.6]).join() === '255,255,255'")
        picture(people(60)[9], SIZE).save(tmp_path / "mine.png")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Upload a sketch").click()
        chooser.value.set_files(tmp_path / "mine.png")
        assert received(tmp_path, "draw", 5)[4]["strokes"] == []
        page.wait_for_function("document.querySelector('.reid-card img').title === 'people/00009.png'")
        centre = "c => [...c.getContext('2d').getImageData(c.width / 2, c.height * 0.37, 1, 1).data].slice(0, 3)"
        page.wait_for_function(f"({centre})(document.querySelector('.reid-pad canvas')).join() !== '255,255,255'")
        screenshot(page, "sketch-upload-voila")
        page.get_by_role("button", name="Clear").click()
        assert received(tmp_path, "draw", 6)[5]["png"] is None
    finally:
        context.close()
        server.stop()


TEXTS = (".reid-title", ".reid-them", ".reid-you", ".reid-chip", ".reid-label b", ".reid-pad-bar button")
WIDTHS = {"wide": (1280, 900), "tablet": (800, 1000), "phone": (390, 800)}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_panel_is_readable_at_every_width_in_both_themes(browser, tmp_path, theme):
    server = voila(tmp_path, True, f"--theme={theme}")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector(".reid-side input[type=text]", timeout=90_000)
        screenshot(page, f"empty-{theme}")
        page.locator(".reid-side input[type=text]").fill("a red top")
        page.keyboard.press("Enter")
        page.wait_for_selector(".reid-card")
        for name, (width, height) in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(300)
            side, found = (page.locator(part).bounding_box() for part in (".reid-side", ".reid-results"))
            assert (found["y"] > side["y"] + side["height"] - 1) == (width < 760)  # one column, or two
            assert found["x"] + found["width"] <= width + 1 and page.locator(".reid-card").first.is_visible()
            for part in (
                ".reid-title",
                ".reid-them",
                ".reid-you",
                ".reid-chip",
                ".reid-label b",
                ".reid-pad-bar button",
            ):
                assert contrast(page, part) >= 4.5, (part, theme, name)
            screenshot(page, f"panel-{theme}-{name}", whole=True)
    finally:
        page.close()
        server.stop()


def contrast(page, selector: str) -> float:
    """The contrast of an element's text with what is behind it, as WCAG 2.1 defines it; 4.5 reads well."""
    return page.locator(selector).first.evaluate("""element => {
        const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        let behind = element;
        const opaque = (node) => {
            const colour = numbers(getComputedStyle(node).backgroundColor);
            return colour.length === 3 || colour[3] > 0.9;
        };
        while (behind.parentElement && !opaque(behind)) behind = behind.parentElement;
        const back = opaque(behind) ? numbers(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
        const [a, b] = [light(numbers(getComputedStyle(element).color)), light(back)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }""")


def run_cell(page) -> None:
    """Presses Control+Enter until JupyterLab, still busy starting, hears it."""
    asked = "!document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText.includes('[ ]')"
    for _ in range(30):
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Control+Enter")
        with contextlib.suppress(sync_api.TimeoutError):
            page.wait_for_function(asked, timeout=2_000)
            return
    screenshot(page, "jupyterlab-stuck")
    pytest.fail("JupyterLab did not run the cell within a minute")


def test_chat_in_jupyterlab(browser, tmp_path):
    write_notebook(tmp_path)
    draw_table(tmp_path / "pictures", 60, size=SIZE)
    settings = tmp_path / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    server = Server(tmp_path, "jupyterlab", "--ServerApp.token=", "--ServerApp.password=", "--allow-root")
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    try:
        page.goto(f"http://127.0.0.1:{server.port}/lab/tree/demo.ipynb")
        page.wait_for_selector(".jp-CodeCell", timeout=90_000)
        run_cell(page)
        talk(page, tmp_path, "jupyterlab")
    finally:
        page.close()
        server.stop()
