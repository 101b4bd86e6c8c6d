"""The line that says how far a headless run is."""

import os
import pty
import subprocess
import sys
import time

import pytest

from reidlib.progress import REPORT, Line, tqdm
from reidlib.tests.test_runner import write

CELLS = [
    {"cell_type": "markdown", "source": "# Top\nprose", "id": "a"},
    {"cell_type": "code", "source": "1", "id": "b"},
    {"cell_type": "markdown", "source": "## Training\n## Deeper", "id": "c"},
    {"cell_type": "code", "source": "2", "id": "d"},
    {"cell_type": "code", "source": "3", "id": "e"},
]


@pytest.fixture
def line(tmp_path):
    return Line("02_x", CELLS, {"b": 5.0, "d": 100.0, "e": 20.0}, 60.0, tmp_path / "report")


def test_heading_and_time_left(line):
    line.start_cell(1)
    assert line.heading() == "Top" and line.left() == pytest.approx(185, abs=1)
    line.start_cell(3)
    assert line.heading() == "Deeper" and line.text() == "02_x  Deeper  about 3 min left"
    line.since -= 1000
    assert line.left() == pytest.approx(80, abs=1), "a cell that takes longer than before is about to end"


def test_without_an_earlier_run_nothing_is_promised(tmp_path):
    assert Line("02_x", CELLS, {}, 0.0, tmp_path / "report").text() == "02_x  Top"


def test_bars_report_to_the_line(line, monkeypatch, capfd):
    monkeypatch.setenv(REPORT, str(line.report))
    for step in tqdm(range(4), desc="epoch 2", unit=" steps", leave=False):
        time.sleep(0.3)
        if step == 3:
            assert "epoch 2 2/4, " in line.text() and " steps/s" in line.text()
    assert line.report.read_text() == ""
    list(tqdm(range(4), desc="other process", disable=True))
    assert line.report.read_text() == "" and capfd.readouterr() == ("", "")


def test_on_a_terminal_it_is_drawn_and_cleared(tmp_path):
    cell = "import time\nfrom reidlib.progress import tqdm\nfor _ in tqdm(range(20), desc='steps'): time.sleep(0.1)"
    write(tmp_path, "02_slow", cell)
    code = (
        "import pathlib, sys; from reidlib import cli, runner; "
        f"runner.notebooks_dir = lambda: pathlib.Path({str(tmp_path)!r}); sys.exit(cli.main(['run']))"
    )
    ours, terminal = pty.openpty()
    environment = {**os.environ, "REIDLIB_OUTPUTS": str(tmp_path / "outputs")}
    for _ in range(2):  # the second knows what the first took
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=terminal, stdout=terminal, check=True)
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the terminal is closed
        pass
    text = shown.decode()
    assert "02_slow  About 02_slow  steps" in text and "left" in text and "About 02_slow  left" not in text
    assert text.count(" s\r\n") == 4, "two executions and their totals, once each"
    assert not list(tmp_path.glob("outputs/*/.progress"))
