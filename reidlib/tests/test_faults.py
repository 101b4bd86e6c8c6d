"""Killed processes, full disks, wrong checkpoints, no network: one sentence at most, and nothing done is lost."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reidlib import paths, runner, runs, weights
from reidlib.backbones.clip import create_clip
from reidlib.backbones.swin_llama import decoder, swin
from reidlib.cli import main
from reidlib.data import load
from reidlib.errors import CheckpointError, ReidError
from reidlib.evaluation import Ranks
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.diana import DiaNA, DianaConfig
from reidlib.methods.interactreid import InteractReIDInvert, InvertConfig
from reidlib.models import load_model
from reidlib.official import import_official
from reidlib.retrieval import QuerySession, encode_folder
from reidlib.retrieval.report import write_csv, write_report
from reidlib.runs import Run
from reidlib.tests.attribute_model import AttributeModel, draw_table, make_gallery
from reidlib.tests.test_runner import write

# -- killed processes ----------------------------------------------------------------------------------------------

# One process makes ready and forks a child for each attempt, which saves the ten seconds of a start each time. A byte
# goes to the file of steps as each step begins. One thread: a forked child has none of its parent's OpenMP workers, and
# would wait for them.
ATTEMPTS = """
import json, os, random, signal, sys, time
from pathlib import Path
import lightning_fabric, torch
from reidlib.data import load
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.tests import training

folder, data, rng, honest = Path(sys.argv[1]), load("toy", sys.argv[2]), random.Random(0), Clip.losses
data.table = data.table[:48]


def settings(every):
    few = {"backbone": "toy-random", "epochs": 3, "batch_size": 16, "max_steps": 9, "save_every": every}
    return ClipConfig.preset("toy", **few)


def train(where, every):
    steps = os.open(folder / f"{where}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Clip.losses = lambda self, batch: os.write(steps, b".") and honest(self, batch)
    config = settings(every)
    torch.manual_seed(0)
    for _ in training.train(Clip(config), data, config, folder / where, select=[]):
        pass


def attempt(where, every, kill_at=None):
    before = count(where)
    child = os.fork()
    if not child:
        try:
            train(where, every)
        finally:
            os._exit(0)
    if kill_at is not None:
        while count(where) < before + kill_at:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def count(where):
    file = folder / f"{where}.steps"
    return file.stat().st_size if file.exists() else 0


Clip(settings(0)).tokenize(["a man"])
attempt("whole", 0)
for every, kills in ((1, (3, 2)), (2, (3, 2, 3))):
    for kill_at in kills:
        attempt(f"killed {every}", every, kill_at)
    attempt(f"killed {every}", every)
print(json.dumps([count("whole"), count("killed 1"), count("killed 2")]))
"""


def test_training_killed_at_random_moments_ends_with_the_same_weights(toy_root, tmp_path):
    command = [sys.executable, "-c", ATTEMPTS, tmp_path, toy_root]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread, timeout=280)
    assert done.returncode == 0, done.stderr
    whole, every_step, every_other = json.loads(done.stdout)
    assert whole == 9 and 9 <= every_step <= 9 + 2 * 1 and 9 <= every_other <= 9 + 3 * 2, "all that kills cost"
    last, log = "checkpoint/last.safetensors", "log.jsonl"
    tensors, losses = load_file(tmp_path / "whole" / last), losses_in(tmp_path / "whole" / log)
    for run in ("killed 1", "killed 2"):
        again = load_file(tmp_path / run / last)
        assert tensors.keys() == again.keys() and all(torch.equal(tensors[name], again[name]) for name in tensors)
        assert losses_in(tmp_path / run / log) == losses
        left = {path.name for path in (tmp_path / run / "checkpoint").iterdir()}
        assert left == {".lock", "best.json", "best.safetensors", "last.json", "last.safetensors"}


def losses_in(log):
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


# In the kernel's first life, it says when it is in the middle of training and waits to be killed there.
TRAINING = """
import os, pathlib, sys, time, torch
from reidlib.data import load
from reidlib.data.batches import data_pixels
from reidlib.evaluation import Encoder, evaluate, tasks
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.runs import Run
from reidlib.tests.training import train
torch.set_num_threads(1)
torch.manual_seed(0)
data = load("toy", {root!r})
config = ClipConfig.preset("toy", backbone="toy-random", epochs=2, batch_size=32, max_steps=4, save_every=1)
results, model, begun = Run(run), Clip(config), pathlib.Path({begun!r})
honest = Clip.losses
def losses(self, batch):
    if batch["progress"] > 0 and begun.is_file() and not begun.read_text():
        begun.write_text(str(os.getpid()))
        time.sleep(60)
    return honest(self, batch)
Clip.losses = losses
for row in train(model, data, config, results.folder, select=[]):
    pass
Clip.losses = honest
rows, ranks = evaluate(Encoder(model, data_pixels(data, config.image_size)), tasks(data, "test", ["text"]))
results.add(rows, ranks, method="clip", label="CLIP", dataset="toy", seed=0)
"""


def test_a_notebook_killed_while_it_trains_comes_to_the_same_metrics(toy_root, tmp_path, monkeypatch):
    begun, outputs = tmp_path / "begun", tmp_path / "outputs"
    source = TRAINING.format(root=str(toy_root), begun=str(begun))
    shelf = tmp_path / "notebooks"
    shelf.mkdir()
    write(shelf, "02_killed", source)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(outputs))
    monkeypatch.setattr(runs, "loaded", {})  # as in a kernel of its own
    earlier = Run("02_killed")
    earlier.write_json("metrics.json", {"rows": []})
    (earlier.folder / "executed.ipynb").write_text("an earlier good one")
    kept = contents(earlier.folder)
    threads = torch.get_num_threads()
    exec(source, {"run": "uninterrupted"})  # as a kernel would, without the wait for one
    torch.set_num_threads(threads)

    begun.touch()
    code = "import pathlib, sys; from reidlib import cli, runner; runner.notebooks_dir = lambda: pathlib.Path({!r}); "
    code = code.format(str(shelf)) + "sys.exit(cli.main(['run', '2']))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not begun.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    os.kill(int(begun.read_text()), signal.SIGKILL)  # a kernel leads a process group of its own
    process.wait(timeout=10)
    left = contents(earlier.folder)
    assert {name: left[name] for name in kept} == kept, "what was there before is untouched"
    assert weights.state_of(earlier.folder / "checkpoint" / "last.safetensors")["step"] == 1

    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    files = [outputs / run / "metrics.json" for run in ("uninterrupted", "02_killed")]
    assert files[0].read_text() == files[1].read_text() and '"R@1"' in files[1].read_text()
    names = {path.name for path in earlier.folder.iterdir()}
    assert names == {".lock", "checkpoint", "executed.ipynb", "log.jsonl", "metrics.json", "per_query.npz"}


# -- full disks ----------------------------------------------------------------------------------------------------


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def room_for(size):
    """No file may grow beyond `size` bytes: writing stops in the middle of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def session(tmp_path):
    session = QuerySession(AttributeModel(), make_gallery(tmp_path / "gallery", 20))
    session.say("a red top")
    return session


def per_query(run, session):
    run.add([{"task": "t2i", "R@1": 1.0}], {"t2i": Ranks(*(np.random.rand(400) for _ in Ranks.__annotations__))})


def figure(run, session):
    from matplotlib.figure import Figure

    drawn = Figure()
    drawn.add_subplot().plot([1, 2, 3])
    run.figure("curve", drawn)


WRITERS = {
    "a checkpoint": lambda run, s: weights.save(run.folder / "last.safetensors", torch.nn.Linear(50, 50), {"a": 1}),
    "metrics": lambda run, s: run.write_json("metrics.json", {"rows": [{"method": "clip" * 80}]}),
    "the ranks of each query": per_query,
    "a figure": figure,
    "a session": lambda run, s: s.save(run.folder / "session.json"),
    "a table": lambda run, s: write_csv(s, str(run.folder / "results.csv")),
    "a report": lambda run, s: write_report(s, run.folder / "report.html"),
    "a gallery": lambda run, s: encode_folder(AttributeModel(), s.gallery.root, run.folder, batch_size=4),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_one_sentence_and_spoils_nothing(what, tmp_path, monkeypatch, session):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    run = Run("02")
    WRITERS[what](run, session)
    before = contents(run.folder)
    if what == "a gallery":  # another picture: all is encoded anew
        draw_table(tmp_path / "gallery" / "more", 2)
    else:
        session.say("a blue hat " * 20)
    with room_for(150), pytest.raises(ReidError, match="could not be written") as caught:
        WRITERS[what](run, session)
    assert str(caught.value).count("\n") == 0 and str(run.folder) in str(caught.value)
    after = contents(run.folder)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".part")]
    WRITERS[what](run, session)  # with room again, it goes on


def test_a_full_disk_under_the_executed_notebook(tmp_path, monkeypatch, capsys):
    from papermill.iorw import LocalHandler

    write(tmp_path, "02_full", "print(1)")
    folder = tmp_path / "outputs" / "02_full"
    folder.mkdir(parents=True)
    (folder / "executed.ipynb").write_text("an earlier good one")
    honest, calls = LocalHandler.write, []

    def full(self, content, path):
        calls.append(path)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        honest(self, content, path)

    monkeypatch.setattr(LocalHandler, "write", full)
    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    assert main(["run", "2"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "No space left on device" in complaint and str(folder) in complaint
    assert (folder / "executed.ipynb").read_text() == "an earlier good one"


def test_what_a_killed_process_was_writing_is_cleared(tmp_path):
    (tmp_path / "last.safetensors.1.part").write_bytes(b"half")
    weights.save(tmp_path / "last.safetensors", torch.nn.Linear(1, 1), {})
    assert not list(tmp_path.glob("*.part"))


def test_no_write_without_permission_is_hidden(tmp_path):
    (tmp_path / "a.txt").mkdir()  # nothing can be renamed to it
    with pytest.raises(ReidError, match="a.txt could not be written"):
        paths.write_text(tmp_path / "a.txt", "words")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# -- checkpoints of something else ---------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run of the baseline; returns the file of its checkpoint."""
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    config = ClipConfig.preset("toy", backbone="toy-random")
    file = tmp_path / "02_clip" / "checkpoint" / "best.safetensors"
    weights.save(file, Clip(config), {"method": "clip", "config": config.as_dict(), "num_classes": 0})
    return file


def test_a_run_of_another_method_is_named(trained):
    other = load_model("02_clip")
    with pytest.raises(CheckpointError, match="Stage 2 starts from a model of interactreid-1 and got one of clip"):
        InteractReIDInvert.from_stage1(InvertConfig.preset("toy", backbone="toy-random"), other)
    with pytest.raises(CheckpointError, match="02_clip does not fit DiaNA; missing: "):
        DiaNA(DianaConfig.preset("toy", backbone="toy-random")).start_from(other.state_dict(), source="02_clip")
    with pytest.raises(CheckpointError, match="is no checkpoint of cffa"):
        import_official("cffa", trained)
    with pytest.raises(ReidError, match="leaves its folder"):
        load_model("02_clip", "../../elsewhere")


@pytest.mark.parametrize("state", [{}, [], {"method": "clip"}, {"method": "clip", "config": 3, "num_classes": 0}])
def test_a_checkpoint_that_does_not_say_what_it_is(trained, state):
    weights.save(trained, torch.nn.Linear(1, 1), state)
    with pytest.raises(CheckpointError, match="does not say of which method"):
        load_model("02_clip")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_checkpoint_is_named(trained, keep):
    trained.write_bytes(trained.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="best.safetensors is damaged"):
        load_model("02_clip")


# -- no network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fetch",
    [
        lambda: create_clip("ViT-B-32:openai"),
        lambda: create_clip("roberta-ViT-B-32"),
        lambda: swin("microsoft/swinv2-tiny-patch4-window8-256", (64, 64)),
        lambda: decoder("meta-llama/Llama-3.2-1B"),
    ],
    ids=["clip", "its text tower", "swin", "llama"],
)
def test_without_a_network_one_sentence_says_what_to_do(fetch, capfd):
    with pytest.raises(ReidError, match="elsewhere|another machine|on a machine with a network") as caught:
        fetch()
    assert "\n" not in str(caught.value) and "ERROR" not in "".join(capfd.readouterr())


def test_an_unreadable_training_picture_is_named_and_left_out(toy_root, tmp_path, monkeypatch):
    import shutil

    from reidlib.tests.training import train

    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    root = shutil.copytree(toy_root, tmp_path / "toy")
    data = load("toy", root)
    broken = data.root / data.split("train")["image"][5]
    broken.write_bytes(broken.read_bytes()[:100])
    config = ClipConfig.preset("toy", backbone="toy-random", max_steps=1)
    with pytest.warns(UserWarning, match=f"left out: 1. {broken}"):
        list(train(Clip(config), data, config, runs.Run("02").folder))
