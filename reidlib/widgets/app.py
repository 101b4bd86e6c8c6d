"""Searching a folder of one's own without a notebook: the panel as a page, and one query as a contact sheet."""

import contextlib
import json
import tempfile
from hashlib import blake2b
from pathlib import Path

from reidlib.data import PersonData, load
from reidlib.data.metadata import metadata_files
from reidlib.errors import DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.models import loaded, pick_model
from reidlib.paths import outputs_dir
from reidlib.retrieval import Gallery, Presence, QuerySession, QuestionBank, encode_folder, questions_about
from reidlib.widgets.panel import SearchPanel, html

CELL = "from reidlib.widgets.app import panel\n\npanel({folder!r}, {model!r}, {saved!r})"


def annotated(folder: str) -> PersonData | None:
    """The toy world for "", or a folder with metadata as a data set; None for a folder of pictures alone.

    Raises ReidError where there is no such folder.
    """
    if not folder:
        return load("toy")
    if not Path(folder).is_dir():
        raise ReidError(f"{Path(folder).absolute()} is no folder; expected one with pictures.")
    return load("folder", Path(folder).absolute()) if metadata_files(Path(folder)) else None


def open_gallery(
    folder: str, data: PersonData | None, model: str, reads: tuple[str, ...], also: tuple[str, ...] = ()
) -> tuple[Method, Gallery, str]:
    """A model, the gallery of a folder, and the sentence that says which model it is. folder: "" for the toy world's
    test pictures; data: as `annotated` has it; model: a name for `load_model`, "" for the one that fits; reads, also:
    as `pick_model` has them.

    Embeddings are kept in outputs/galleries/ and made once. Of a folder with metadata the pictures that it tells of are
    the gallery, and what it tells of them comes along.
    """
    chosen, which = pick_model(reads, photos=bool(folder), name=model, also=also)
    place = _place(folder)
    if data is None:
        return chosen, encode_folder(chosen, Path(folder).absolute(), place), which
    return chosen, Gallery.encode(chosen, data.table if folder else data.split("test"), data.root, place), which


def _place(folder: str) -> Path:
    """Where the embeddings of a folder are kept."""
    if not folder:
        return outputs_dir() / "galleries" / "toy"
    path = Path(folder).absolute()
    mark = blake2b(str(path).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return outputs_dir() / "galleries" / f"{path.name}-{mark}"


def presence_of(model: Method, folder: str, data: PersonData | None) -> Presence | None:
    """How to tell whether the person is there at all, learnt from the people that are annotated: those of the toy
    world's validation split, or of a folder with metadata. None where these are too few."""
    place = _place(folder)
    if data is None or not {"text", "turns"} & set(model.reads):
        return None
    people, beside = (data.table, place) if folder else (data.split("val"), None)
    try:
        return Presence.kept(model, people, data.root, place / "presence.json", beside)
    except DataError:
        return None


def questions_of(model: Method, gallery: Gallery, folder: str, data: PersonData | None) -> QuestionBank | None:
    """What may be asked: of the toy world what its attributes tell, fitted to what the model sees in its validation
    pictures; of a folder with metadata what that tells; None for the usual questions."""
    about = [row.get("attributes") or {} for row in gallery.index.metadata]
    if not {"text", "turns"} & set(model.reads) or not any(about):
        return None
    known = None if folder else Gallery.encode(model, data.split("val"), data.root, _place(folder) / "val").index
    return QuestionBank(Encoder(model), gallery.index, questions_about(about), known)


def open_session(folder: str, model: str) -> tuple[QuerySession, str]:
    """A session with all that a page needs, and the sentence that says which model it is; arguments as in
    `open_gallery`. What it encodes is kept, so that pages which open side by side afterwards write nothing."""
    data = annotated(folder)
    chosen, gallery, which = open_gallery(folder, data, model, ("text", "turns", "sketch"))
    questions, presence = questions_of(chosen, gallery, folder, data), presence_of(chosen, folder, data)
    return QuerySession(chosen, gallery, questions, presence), which


def panel(folder: str = "", model: str = "", saved: str = "search") -> SearchPanel:
    """The panel on a folder of pictures; arguments as in `open_gallery`. saved: the folder of saved searches."""
    session, which = open_session(folder, model)
    made = SearchPanel(session, folder=Path(saved))
    made.message.value = html("reid-note", which)
    return made


def serve(folder: str = "", model: str = "", host: str = "127.0.0.1", port: int = 8866) -> None:
    """Encodes the pictures, then serves the panel with voila until it is interrupted; prints the address.

    One page is prepared before anybody asks for it. host: whoever reaches it can search the pictures, so it is the
    loopback address unless told otherwise. Raises ReidError where voila is missing.
    """
    try:
        from voila.app import Voila
    except ImportError as error:
        raise ReidError("The app needs voila: pip install 'reidlib[app]'.") from error
    folder = str(Path(folder).absolute()) if folder else ""
    session, which = open_session(folder, model)
    model = model or next(reversed(loaded), "")  # the run that was picked: later trainings change no page
    print(which)
    cell = {
        "id": "panel",
        "cell_type": "code",
        "metadata": {},
        "source": CELL.format(folder=folder, model=model, saved=str(Path("search").absolute())),
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    with tempfile.TemporaryDirectory() as place:
        notebook = Path(place, "search.ipynb")
        notebook.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        print(f"{len(session.gallery):,} pictures; open http://{host}:{port} in a browser, Ctrl-C ends it.", flush=True)
        options = ["--no-browser", f"--port={port}", f"--Voila.ip={host}", "--Voila.port_retries=0"]
        options += ["--Voila.log_level=40", "--preheat_kernel=True", "--pool_size=1"]
        options += ["--KernelManager.transport_encryption=auto"]
        # a page that was closed without a word keeps half a GB for half an hour
        options += ["--MappingKernelManager.cull_idle_timeout=1800", "--MappingKernelManager.cull_interval=60"]
        with contextlib.suppress(SystemExit):  # how it ends where the port is taken, having said so
            Voila.launch_instance([str(notebook), *options])


def search(folder: str, text: str = "", sketch: str = "", photo: str = "", model: str = "") -> tuple[QuerySession, str]:
    """A session on a folder that was told `text`, shown the pictures in the files `sketch` and `photo`, and the
    sentence that says which model reads them. Raises ReidError where nothing was told."""
    from reidlib.data.images import open_image

    if not (text or sketch or photo):
        raise ReidError("Nothing to search with was given; expected a text in quotes, --sketch FILE or --photo FILE.")
    reads = ("text", "turns") if text else ("sketch",) if sketch else ("text", "turns", "sketch")
    drawn, shown = (open_image(file) if file else None for file in (sketch, photo))
    chosen, gallery, which = open_gallery(folder, annotated(folder), model, reads, ("sketch",) if sketch else ())
    session = QuerySession(chosen, gallery)
    if text:
        session.say(text)
    if drawn:
        session.draw(drawn)
    if shown:
        session.show(shown)
    return session, which
