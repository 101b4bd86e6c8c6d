"""Whatever a user types or a file holds ends in one sentence of ours: not in a traceback, not in code that runs."""

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from functools import cache, partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors

from reidlib import data, paths, runner
from reidlib.cli import main
from reidlib.errors import CheckpointError, ConfigError, DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.methods import METHODS, config_class
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.models import load_model, pick_model
from reidlib.official import import_official
from reidlib.retrieval import Gallery, GalleryIndex, QuerySession, QuestionBank
from reidlib.runner import parse_value, plan, select
from reidlib.tests import test_official
from reidlib.tests.attribute_model import QUESTIONS, AttributeModel, make_gallery, picture
from reidlib.tests.test_golden_diana import write_official
from reidlib.tests.test_runner import write
from reidlib.weights import read as read_weights
from reidlib.widgets import SearchPanel

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLES = ["", "..", "../../x", "/etc/passwd", "~", "a\0b", "\ud800", "<b>", "-x", "{[]: 1}", "1e999", "{1}"]
TEXT = st.text(st.characters(exclude_categories=()), max_size=40) | st.sampled_from([*SAMPLES, "x" * 5000, "[" * 3000])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)

FILES = ("cfine", "cffa", "interactreid")


# -- checkpoints ---------------------------------------------------------------------------------------------------


class Trap:
    """Something that runs when it is unpickled by what trusts it."""

    def __init__(self, call, *arguments):
        self.result = call, arguments

    def __reduce__(self):
        return self.result


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("wrap", [pickle.dumps, None], ids=["pickle", "torch"])
def test_no_checkpoint_runs_code(tmp_path, protocol, wrap):
    sprung, file = tmp_path / "sprung", tmp_path / "a.pt"
    code = f"open({str(sprung)!r}, 'w')"
    calls = [(os.mkdir, str(sprung)), (open, str(sprung), "w"), (exec, code), (eval, code)]
    calls += [(os.system, f"touch {sprung}"), (subprocess.call, ["touch", str(sprung)])]
    calls += [(torch.load, str(file)), (torch.hub.load, "a/b", "c")]
    for call in calls:
        content = {"model": {"weight": torch.zeros(1)}, "config": Trap(*call)}
        if wrap:
            file.write_bytes(pickle.dumps(content, protocol))
        else:
            torch.save(content, file, pickle_protocol=max(protocol, 2))
        for read in (read_weights, *(partial(import_official, kind) for kind in FILES)):
            with pytest.raises(CheckpointError, match="was not opened|damaged"):
                read(file)
    assert not sprung.exists()


@cache  # torch writes addresses into the old format, so another time it may be a byte longer
def whole_files():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.half)}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": state}, zipped)
    torch.save({"model": state}, legacy, _use_new_zipfile_serialization=False)
    return {"a.pt": zipped.getvalue(), "b.pth": legacy.getvalue(), "c.safetensors": to_safetensors(state)}


@few
@given(st.data())
def test_any_bytes_read_or_say_why(tmp_path, data):
    name = data.draw(st.sampled_from(["a.pt", "b.pth", "c.safetensors"]))
    content = bytearray(whole_files()[name])
    match data.draw(st.sampled_from(["random", "cut", "changed"])):
        case "random":
            content = data.draw(st.binary(max_size=200))
        case "cut":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        case _:
            for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
                content[place] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(bytes(content))
    try:
        state = read_weights(tmp_path / name, "model")
    except CheckpointError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_files_that_promise_too_much_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**6], "data_offsets": [0, 4 * 10**15]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    torch.save({"a": torch.zeros(1, dtype=torch.half).expand(10**6, 10**6)}, tmp_path / "c.pt")
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "d.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    for name, told in {
        "a.safetensors": "damaged",
        "b.safetensors": "damaged",
        "c.pt": "more elements",
        "d.pt": "compressed",
    }.items():
        with pytest.raises(CheckpointError, match=told):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [None, 3, [], {}, {"a": 1}, {1: torch.zeros(1)}, {"model": [1]}, {"model": {"a": {}}},
     {"a": torch.zeros(2, 2).to_sparse()}, {"a": torch.zeros(2, device="meta")}, {"network": {"W": 1}}],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    for kind in FILES:
        with pytest.raises(CheckpointError):
            import_official(kind, tmp_path / "a.pt")


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 16, 64, 65]), max_size=5)
DTYPES = st.sampled_from([torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64])


@pytest.mark.filterwarnings("ignore:Validating sparse", "ignore:Initializing zero-element")
@pytest.mark.parametrize("kind", FILES)
def test_any_changed_weights_load_or_say_why(tmp_path, kind):
    key, whole = "network" if kind == "cfine" else "model", test_official.MAKE[kind]()
    # Large tables take long to write and are like any other weight.
    places = sorted(name for name, tensor in whole.items() if tensor.numel() < 50_000)

    @settings(max_examples=6, deadline=None)
    @given(st.data())
    def check(data):
        state, name = dict(whole), data.draw(st.sampled_from(places))
        match data.draw(st.sampled_from(["drop", "shape", "type", "rename", "junk"])):
            case "drop":
                del state[name]
            case "shape":
                state[name] = torch.zeros(data.draw(SHAPES))
            case "type":
                state[name] = state[name].to(data.draw(DTYPES))
            case "rename":
                state[data.draw(st.text(max_size=9))] = state.pop(name)
            case _:
                state[name] = data.draw(st.sampled_from([None, "x", [1], {}, torch.zeros(2).to_sparse()]))
        torch.save({key: state}, tmp_path / "official.pth")
        try:
            import_official(kind, tmp_path / "official.pth", **test_official.SIZES.get(kind, test_official.TALL))
        except CheckpointError as error:
            assert len(str(error)) < 2000

    check()


def test_any_changed_official_folder_loads_or_says_why(tmp_path):
    config = json.loads((write_official(tmp_path) / "config.json").read_text())

    @settings(max_examples=6, deadline=None)
    @given(st.data())
    def check(data):
        changed = json.loads(json.dumps(config))
        part = data.draw(st.sampled_from(["vision_config", "llama_config", ""]))
        sizes = changed[part] if part else changed
        place = data.draw(st.sampled_from(sorted(sizes)))
        sizes[place] = data.draw(st.sampled_from([None, "x", -1, 0, 1, 3, 0.5, [], [1], {}, True]))
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            import_official("diana", tmp_path, image_size=(64, 64))
        except ReidError as error:
            assert len(str(error)) < 2000

    check()


@pytest.mark.parametrize("part", ["vision_config", "llama_config"])
def test_a_folder_that_tells_of_larger_towers_than_it_holds_is_refused(tmp_path, part):
    config = json.loads((write_official(tmp_path) / "config.json").read_text())
    larger = {"vision_config": {"embed_dim": 96_000}, "llama_config": {}}[part]  # {}: the defaults, seven billions
    (tmp_path / "config.json").write_text(json.dumps(config | {part: larger}))
    with pytest.raises(CheckpointError, match="config.json tells of larger towers"):
        import_official("diana", tmp_path, image_size=(64, 64))


# -- what is typed on the command line -----------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    notebook = write(tmp_path, "02_clip_baseline")
    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    return notebook


@settings(few, max_examples=150)
@given(name=st.sampled_from(["dataset", "seed", "lr", "fast", "overrides", "rounds", "run"]) | TEXT, value=TEXT | PLAIN)
def test_any_parameter_makes_a_run_inside_outputs_or_is_refused(notebook, name, value):
    value = parse_value(value) if isinstance(value, str) else value
    try:
        [run] = plan([notebook], {name: value}, None if name != "run" else str(value))
    except (ConfigError, DataError) as error:
        assert "\n" not in str(error)
        return
    folder = paths.run_dir(run.name)
    assert folder.parent == paths.outputs_dir() and folder.is_dir()
    assert json.loads(json.dumps(run.parameters, ensure_ascii=False).encode()) == run.parameters


@few
@given(TEXT)
@example("\n")
def test_any_name_of_a_notebook_or_run_is_known_or_refused(notebook, text):
    for call in (lambda: select([text]), lambda: load_model(text), lambda: load_model("02", text),
                 lambda: pick_model(["text"], False, text or "x"), lambda: runner.plan_again(text)):  # fmt: skip
        try:
            call()
        except ReidError as error:
            assert "\n" not in str(error)


@few
@given(name=st.sampled_from(["folder", "cuhk-pedes"]) | TEXT, root=TEXT.filter(lambda text: len(text) < 50))
def test_any_data_set_and_root_is_read_or_refused(tmp_path, name, root):
    with pytest.raises(ReidError):
        data.load(name, tmp_path / "no" / root.lstrip("/\\"))


@pytest.mark.parametrize("text", SAMPLES)
def test_the_command_says_it_in_one_line(notebook, text, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda run, later=0.0: 0.0)
    for arguments in (["run", "2", "-p", "seed", text], ["run", "2", f"--run={text}"], ["reproduce", "--", text]):
        try:
            status = main(arguments)
        except SystemExit as usage:
            status = usage.code
        complaint = capsys.readouterr().err.encode("utf-8", "backslashreplace").decode()
        assert status == 0 or (status == 2 and (complaint.count("\n") == 1 or "usage:" in complaint))


@few
@given(st.sampled_from(sorted(METHODS)), st.sampled_from(["toy", "paper"]) | TEXT, st.data())
def test_any_setting_is_taken_or_refused(method, preset, data):
    known = config_class(method)
    fields = st.sampled_from(sorted(known().as_dict())) | TEXT
    try:
        known.preset(preset, **data.draw(st.dictionaries(fields, PLAIN, max_size=3)))
    except ConfigError as error:
        assert "\n" not in str(error)


# -- what is done in a search --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_gallery(tmp_path_factory.mktemp("gallery"), 20)


ROWS = st.integers(-3, 25) | st.sampled_from([10**30, 1.5, float("nan"), None, "0", True])
ACTS = st.lists(
    st.tuples(st.sampled_from(["say", "answer"]), TEXT)
    | st.tuples(st.sampled_from(["like", "dislike", "unmark", "results"]), ROWS)
    | st.tuples(st.sampled_from(["ask", "undo", "restart", "draw"]), st.none()),
    max_size=8,
)


@settings(few, max_examples=40)
@given(acts=ACTS)
def test_any_search_goes_on_or_says_why(gallery, tmp_path, acts):
    bank = QuestionBank(Encoder(AttributeModel()), gallery.index, QUESTIONS)
    session = QuerySession(AttributeModel(), gallery, bank)
    for act, value in acts:
        before = len(session.history)
        try:
            match act:
                case "results":
                    session.results(value if type(value) is int else 3)
                case "draw":
                    session.draw(picture({"hat": "red", "top": "blue", "trousers": "green", "shoes": "white"}))
                case "ask" | "undo" | "restart":
                    getattr(session, act)()
                case _:
                    getattr(session, act)(value)
        except ReidError:
            assert len(session.history) == before, "what was refused left nothing"
        session.results(3)
    session.save(tmp_path / "session.json")
    assert QuerySession.load(tmp_path / "session.json", AttributeModel(), gallery, bank).results(3) == session.results(
        3
    )


@pytest.fixture(scope="module")
def reader():
    """A session whose model has CLIP's own tokenizer."""
    model = Clip(ClipConfig.preset("toy", backbone="toy-random"))
    width = model.clip.embed_dim
    rows = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
    return QuerySession(model, Gallery(GalleryIndex(rows, [{"image": f"{i}.png"} for i in range(4)]), "."), QUESTIONS)


@few
@given(text=TEXT)
def test_any_words_pass_the_tokenizer(reader, text):
    reader.restart()
    used, limit = reader.count_tokens(text)
    assert used >= 2 and limit == 77
    try:
        reader.say(text)
    except ReidError:
        return
    assert len(reader.results(4)) == 4


TAGS = {"html", "meta", "title", "style", "h1", "h2", "p", "ol", "ul", "li", "img", "br", "b", "small"}


class Page(HTMLParser):
    """The tags and attributes of some HTML, and the texts between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def chat(gallery, tmp_path_factory):
    bank = QuestionBank(Encoder(AttributeModel()), gallery.index, QUESTIONS)
    session = QuerySession(AttributeModel(), gallery, bank)
    return SearchPanel(session, shown=2, folder=tmp_path_factory.mktemp("search"))


@few
@given(texts=st.lists(st.sampled_from(["<img src=x onerror=y>", "&lt;b&gt;", "\"'><script>"]) | TEXT, max_size=3))
def test_any_words_are_shown_as_words(chat, texts):
    chat.restart()
    for text in texts:
        chat.entry.value = text
        try:
            chat.send(text)
        except ReidError:
            assert Page(chat.message.value).tags == {"div"}
    page = Page(chat.bubbles.value)
    assert page.tags <= {"div", "small"} and page.attributes <= {"class"}
    told = [event["text"] for event in chat.session.history if event["kind"] in ("say", "answer")]
    assert all(any(text == shown for shown in page.texts) for text in told)
    chat.save()
    report = Page((chat.folder / "report.html").read_text())
    assert report.tags <= TAGS
    assert report.attributes <= {"lang", "charset", "alt", "src"}


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no smileys
@pytest.mark.parametrize("text", ["\0\ud800", "$\\frac{", "x" * 1000, "\u202e🙂"])
def test_any_words_are_drawn(chat, text):
    chat.restart()
    chat.send(f"a red {text} top")
    assert chat.snapshot().height > 100
