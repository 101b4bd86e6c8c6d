"""What a session found, to keep: a table of file names, a page, and a contact sheet."""

import base64
import csv
import textwrap
from html import escape
from io import BytesIO, StringIO
from pathlib import Path

from PIL import Image

from reidlib.paths import write_text
from reidlib.retrieval.session import QuerySession, as_png

RESULTS = 50
COLUMNS = 8  # pictures a row of a contact sheet
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


def write_csv(session: QuerySession, path: Path | str) -> None:
    """Columns rank, image (path in the gallery), score, mark.

    A path that a spreadsheet would run as a formula starts with an apostrophe in the file.
    """
    out = StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["rank", "image", "score", "mark"])
    for rank, (row, image, score) in enumerate(session.results(RESULTS), 1):
        table.writerow(
            [rank, f"'{image}" if image.startswith(FORMULA) else image, f"{score:.6f}", session.marks.get(row, "")]
        )
    write_text(path, out.getvalue())


def write_report(session: QuerySession, path: Path | str) -> None:
    """One HTML file with the pictures in it; every word of the user and every file name is escaped."""
    words = {"say": "Said", "answer": "Answered", "only": "Searched only where"}
    told = "".join(
        f"<li>{escape(f'{words[chip.kind]}: {chip.text}' if chip.kind in words else chip.text.capitalize())}</li>"
        for chip in session.told
    )
    given = [as_png(picture) for picture in (session.sketch, session.photo) if picture is not None]
    sketch = "".join(f'<p><img alt="given" src="data:image/png;base64,{png}"></p>' for png in given)
    found = "".join(_figure(session, rank, *result) for rank, result in enumerate(session.results(RESULTS), 1))
    method, count = escape(session.model.name), len(session.gallery)
    write_text(path, PAGE.format(method=method, count=count, told=told, sketch=sketch, found=found))


def _figure(session: QuerySession, rank: int, row: int, image: str, score: float) -> str:
    picture, name = base64.b64encode(session.gallery.thumbnail(row)).decode(), escape(image)
    mark = f" · {session.marks[row]}d" if row in session.marks else ""
    return (
        f'<li><img alt="{name}" src="data:image/jpeg;base64,{picture}"><br>'
        f"<b>{rank}</b> · {score:.3f}{mark}<br><small>{name}</small></li>"
    )


def contact_sheet(session: QuerySession, k: int = 0) -> Image.Image:
    """What was told, and the best k (0: what fits one row) with rank and score, as one picture; liked ones are framed
    in green."""
    from matplotlib.figure import Figure

    given = [picture for picture in (session.sketch, session.photo) if picture is not None]
    found = session.results(k or COLUMNS - len(given)) if session.told else []
    pictures = [(picture, "given", "#2f6db5") for picture in given]
    for rank, (row, _, score) in enumerate(found, 1):
        edge = "#2c8a57" if session.marks.get(row) == "like" else "#d5dae1"
        pictures.append((Image.open(BytesIO(session.gallery.thumbnail(row))), f"{rank}   {score:.3f}", edge))
    rows = max(1, -(-len(pictures) // COLUMNS))
    figure = Figure(figsize=(1.3 * COLUMNS, 0.6 + 2.3 * rows), dpi=100, layout="constrained", facecolor="white")
    words = "\n".join(textwrap.wrap(session.text, 110)[:4]) or ("" if given else "Nothing was told yet.")
    figure.suptitle(words, x=0.01, ha="left", fontsize=10, parse_math=False)
    grid = figure.add_gridspec(rows, COLUMNS)
    for place, (picture, label, edge) in enumerate(pictures):
        axes = figure.add_subplot(grid[divmod(place, COLUMNS)])
        axes.imshow(picture)
        axes.set_title(label, fontsize=9)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=edge, linewidth=1 if edge == "#d5dae1" else 3)
    out = BytesIO()
    figure.savefig(out, format="png")
    return Image.open(out)
