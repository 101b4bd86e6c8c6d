"""Writes what a session found: a table of file names and a page to look at."""

import base64
import csv
from html import escape
from io import StringIO
from pathlib import Path

from reidlib.paths import write_text
from reidlib.retrieval.session import QuerySession

RESULTS = 50
FORMULA = ("=", "+", "-", "@", "\t", "\r")
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Search report</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1000px; margin: 2em auto; padding: 0 1em; }}
ul {{ list-style: none; padding: 0; display: grid; gap: 12px; }}
ul {{ grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }}
img {{ height: 180px; max-width: 100%; object-fit: contain; }}
small {{ color: #667; overflow-wrap: anywhere; }}
</style>
<h1>Search report</h1>
<p>{method}, {count:,} pictures.</p>
<h2>What was told</h2>
<ol>{told}</ol>{sketch}
<h2>The best candidates</h2>
<ul>{found}</ul>
</html>
"""


def write_csv(session: QuerySession, path: Path, k: int = RESULTS) -> None:
    """Columns rank, image (path in the gallery), score, mark.

    A path that a spreadsheet would run as a formula starts with an apostrophe in the file.
    """
    out = StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["rank", "image", "score", "mark"])
    for rank, (row, image, score) in enumerate(session.results(k), 1):
        table.writerow(
            [rank, f"'{image}" if image.startswith(FORMULA) else image, f"{score:.6f}", session.marks.get(row, "")]
        )
    write_text(path, out.getvalue())


def write_report(session: QuerySession, path: Path, k: int = RESULTS) -> None:
    """One HTML file with the pictures in it; every word of the user and every file name is escaped."""
    told = "".join(f"<li>{escape(_line(event))}</li>" for event in session.history if event["kind"] != "draw")
    sketches = [event["png"] for event in session.history if event["kind"] == "draw"][-1:]
    sketch = f'<p><img alt="the sketch" src="data:image/png;base64,{sketches[0]}"></p>' if any(sketches) else ""
    found = "".join(_figure(session, rank, *result) for rank, result in enumerate(session.results(k), 1))
    method, count = escape(session.model.name), len(session.gallery)
    write_text(path, PAGE.format(method=method, count=count, told=told, sketch=sketch, found=found))


def _line(event: dict) -> str:
    said = event["image"] if "image" in event else event["text"]
    words = {"say": "Said", "ask": "Asked", "answer": "Answered", "like": "Liked", "dislike": "Disliked"}
    return f"{words.get(event['kind'], 'Mark taken from')}: {said}"


def _figure(session: QuerySession, rank: int, row: int, image: str, score: float) -> str:
    picture, name = base64.b64encode(session.gallery.thumbnail(row)).decode(), escape(image)
    mark = f" · {session.marks[row]}d" if row in session.marks else ""
    return (
        f'<li><img alt="{name}" src="data:image/jpeg;base64,{picture}"><br>'
        f"<b>{rank}</b> · {score:.3f}{mark}<br><small>{name}</small></li>"
    )
