"""A folder of one's own, searched by one command, and the panel as a page in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidlib import cli
from reidlib.tests.attribute_model import draw_table
from reidlib.tests.ports import free_port
from reidlib.widgets import app

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PKU = Path(os.environ.get("REIDLIB_SHARED", "../shared"), "data", "PKU-Sketch", "photo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Real photos where they are at hand, else drawn people."""
    folder = tmp_path_factory.mktemp("photos")
    photos = sorted(PKU.glob("*.jpg"))[:12]
    for photo in photos:
        shutil.copy(photo, folder)
    if not photos:
        draw_table(folder, 12)
    return folder


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_searched_by_words_a_sketch_and_a_photo(folder, tmp_path, capsys):
    Image.fromarray(np.full((64, 32), 200, np.uint8)).save("sketch.png")
    photo = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    assert cli.main(["search", str(folder), "a woman in red", "--model", "toy", "-k", "3"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "toy" in told[0] and [line.split()[0] for line in told[1:4]] == ["1", "2", "3"]
    assert all((folder / line.split(maxsplit=2)[2]).is_file() for line in told[1:4])
    assert Image.open("search.png").width > 500
    every = ["search", str(folder), "a man", "--sketch", "sketch.png", "--photo", str(photo), "--model", "toy"]
    assert cli.main([*every, "--to", "all.png"]) == 0
    alone = ["search", str(folder), "--photo", str(photo), "--model", "toy", "-k", "1"]
    capsys.readouterr()
    assert cli.main(alone) == 0 and photo.name in capsys.readouterr().out


def test_a_folder_with_metadata_is_searched_by_what_it_tells(tmp_path):
    table = draw_table(tmp_path / "own", 12)
    Image.new("L", (32, 64), 255).save(tmp_path / "own" / "drawn.png")
    rows = [{"file_name": row.image, "pid": row.pid, "text": row.text} for row in table.itertuples()]
    rows[0]["sketch"] = "drawn.png"
    (tmp_path / "own" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = app.panel(str(tmp_path / "own"), "toy")
    gallery = made.session.gallery
    assert [row["image"] for row in gallery.index.metadata] == table["image"].tolist(), "a sketch is no candidate"
    made.send(table["text"][3][0])
    note = made.results.note
    assert "the person is" in note and "chance" in note
    made.uploaded((tmp_path / "own" / "drawn.png").read_bytes(), "sketch")
    assert made.results.note == "", "a drawing's scores are not those of words"
    alone = str(tmp_path / "own" / "people")
    assert app.presence_of(made.session.model, alone, app.annotated(alone)) is None


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["search", "nowhere", "a man"], "no folder"),
        (["app", "nowhere"], "no folder"),
        (["search", ".", "a man", "--model", "toy"], "holds no picture"),
        (["search", "FOLDER", "--model", "toy"], "Nothing to search with"),
        (["search", "FOLDER", "--photo", "none.jpg", "--model", "toy"], "does not exist"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(arguments, sentence, folder, capsys):
    given = [str(folder) if word == "FOLDER" else word for word in arguments]
    assert cli.main(given) == 2
    told = capsys.readouterr().err
    assert sentence in told and len(told.splitlines()) == 1


def test_the_app_is_the_panel_alone(folder, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium")
    port = free_port()
    command = [sys.executable, "-c", "import sys; from reidlib.cli import main; sys.exit(main())"]
    command += ["app", str(folder), "--model", "toy", f"--port={port}"]
    with Path("app.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        for _ in range(480):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, Path("app.log").read_text()
            time.sleep(0.25)
        assert f"http://127.0.0.1:{port}" in Path("app.log").read_text()
        with sync_api.sync_playwright() as play:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{port}/", timeout=120_000)
            page.wait_for_selector(".reid-side input[type=text]", timeout=90_000)
            assert page.locator(".reid-panel").bounding_box()["y"] < 100  # above the fold, with nothing before it
            page.locator(".reid-side input[type=text]").fill("a man in black")
            page.keyboard.press("Enter")
            page.wait_for_selector(".reid-card")
            if kept := os.environ.get("REIDLIB_SCREENSHOTS"):
                page.screenshot(path=Path(kept, "app.png"))
            browser.close()
    finally:
        process.terminate()
        process.wait(90)  # it ends its kernels first


def test_pages_that_open_side_by_side_find_everything_encoded(toy_root, tmp_path, monkeypatch):
    voila = pytest.importorskip("voila.app")
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    found = []
    rows = lambda: sorted(path.parent.name for path in tmp_path.glob("galleries/**/*.rows"))  # noqa: E731
    monkeypatch.setattr(voila.Voila, "launch_instance", lambda arguments: found.extend(rows()))
    app.serve(model="toy")
    app.panel(model="toy")
    assert found == rows() == ["toy", "val"]
