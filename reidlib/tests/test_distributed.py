"""Several processes train as one: the same batches, gradients and numbers, in a notebook, a script, under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reidlib import runner
from reidlib.config import Config
from reidlib.data import load
from reidlib.data.batches import TrainBatches, data_pixels
from reidlib.devices import gather, weight_of
from reidlib.errors import ConfigError, DataError, ReidError
from reidlib.evaluation import Encoder, tasks
from reidlib.losses import both_ways, identity_targets, itc
from reidlib.methods.base import Method
from reidlib.methods.cffa import CFFA, CFFAConfig, Reasoning
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.diana import DiaNA, DianaConfig
from reidlib.methods.interactreid import AdaptConfig, InteractReIDAdapt, InteractReIDInvert, InvertConfig
from reidlib.methods.omni import Omni, OmniConfig
from reidlib.tests.ports import free_port
from reidlib.tests.training import train
from reidlib.training import fit


def still(ids: Tensor, shift: int) -> Tensor:
    """Pictures (B, 3, 128, 64) that depend on their ids alone, so that no process augments them its own way."""
    grid = torch.arange(3 * 128 * 64).view(1, 3, 128, 64)
    return torch.sin(0.01 * grid * (1 + ids.view(-1, 1, 1, 1)) + shift)


class Still:
    """A method without chance: no augmentation, no dropout."""

    def __init__(self, config, num_classes=0):
        super().__init__(config, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def losses(self, batch):
        names = [name for name in ("images", "sketch", "photo") if name in batch]
        pictures = {name: still(batch["image_ids"], n) for n, name in enumerate(names)}
        return super().losses(batch | pictures)


class StillClip(Still, Clip):
    pass


class StillCFine(Still, CFine):  # batch normalisation
    pass


class StillCFFA(Still, CFFA):
    pass


class StillDiaNA(Still, DiaNA):  # attributes (N, M, K) of all processes
    pass


class StillAdapt(Still, InteractReIDAdapt):  # soft targets from gathered features
    pass


class StillInvert(Still, InteractReIDInvert):  # frozen weights
    pass


class StillOmni(Still, Omni):  # a gallery of all processes
    pass


def summary(images: Tensor) -> Tensor:
    """(B, 3, 128, 64) -> (B, 96): colours of horizontal stripes."""
    return images.unflatten(2, (32, 4)).mean((3, 4)).flatten(1)


class SmallConfig(Config):
    @classmethod
    def toy(cls):
        return cls()


class Small(Method):
    """Two linear maps, quick to import and to train; its loss grows with the epochs done."""

    name = "small"
    reads = ("text",)

    def __init__(self, config, num_classes=0):
        super().__init__()
        self.config = config
        self.picture, self.word = nn.Linear(96, 8), nn.EmbeddingBag(128, 8, padding_idx=0)

    def tokenize(self, texts):
        return torch.tensor([[ord(letter) % 128 for letter in text[:40].ljust(40, "\0")] for text in texts])

    def embed_image(self, images):
        return normalize(self.picture(summary(images)), dim=-1)

    def embed_text(self, ids):
        return normalize(self.word(ids), dim=-1)

    def losses(self, batch):
        photos, texts = self.embed_image(still(batch["image_ids"], 0)), self.embed_text(batch["text"])
        targets = identity_targets(gather(batch["pids"]))
        loss = both_ways(itc, 20 * gather(texts) @ gather(photos).T, targets)
        return {"t2i": (1 + batch["progress"]) * loss}


class Fails(Small):
    def losses(self, batch):
        if os.environ["RANK"] == "1":
            raise DataError("This process was told to stop.")
        return super().losses(batch)


class Dies(Small):
    def losses(self, batch):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)


class DiesOnce(Small):
    taken = 0

    def losses(self, batch):
        self.taken += 1
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.taken == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)


class Slow(Small):
    def losses(self, batch):
        time.sleep(0.2)
        return super().losses(batch)


# Steps are linear in the gradient where eps is far above it; Adam's own would turn rounding errors into steps.
LINEAR = {"device": "cpu", "batch_size": 16, "max_steps": 2, "warmup_epochs": 0.0, "lr": 0.1, "eps": 1.0}
CASES: dict = {
    "clip": (StillClip, ClipConfig, {}),
    "clip of sketches": (StillClip, ClipConfig, {"views": ("sketch",)}),  # no gradient for the text tower
    "cfine": (StillCFine, CFineConfig, {"text_lr": 0.1, "head_lr": 0.1}),
    "cffa": (  # trimmed, the padding that fills short captions up would depend on the share of a batch
        StillCFFA,
        CFFAConfig,
        {"augment_words": 0.0, "mask_words": 0.0, "mlm_weight": 0.0, "text_dropout": 0.0, "trim": False},
    ),
    "diana": (
        StillDiaNA,
        DianaConfig,
        {"towers": "transformers", "embed_dim": 64, "num_queries": 3, "refiner_layers": 1, "reduction": "lsp_max"}
        | {"random_rounds": False, "masking": 0.0},
    ),
    "interactreid-1": (StillAdapt, AdaptConfig, {"text_dropout": 0.0, "alpha": 0.2}),
    "interactreid": (StillInvert, InvertConfig, {"text_dropout": 0.0, "mapping_dropout": 0.0}),
    "omni": (StillOmni, OmniConfig, {"keep": 1.0, "marks": 0.0}),
}


def case(name: str, devices: int) -> Method:
    kind, config, more = CASES[name]
    torch.manual_seed(0)
    return kind(config.preset("toy", backbone="toy-random", devices=devices, **LINEAR, **more), 40)


def small(kind: type[Method] = Small, **more) -> Method:
    torch.manual_seed(0)
    return kind(Config().replace(**{"device": "cpu", "batch_size": 16, "max_steps": 3} | more))


def weights(model: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def largest_difference(these: dict[str, Tensor], those: dict[str, Tensor]) -> float:
    return max(float((value - those[name]).abs().max()) for name, value in these.items())


def embedded(model: Method, data) -> list[Tensor]:
    encoder = Encoder(model, data_pixels(data, model.image_size), batch_size=7)
    return [
        part
        for task in tasks(data, "val", ["text"])
        for part in (encoder.queries(task.queries), encoder.images(task.gallery))
    ]


def guessing(rank: int | None = None) -> Tensor:
    """CFFA's loss of four captions' hidden words, nine of them in the first half and one in the second: of a half, or
    of all."""
    torch.manual_seed(0)
    reasoning, words, patches = (
        Reasoning(32, heads=4, layers=1, vocab_size=50),
        torch.randn(4, 6, 32),
        torch.randn(4, 5, 32),
    )
    labels = torch.zeros(4, 6, dtype=torch.long)
    labels[:2, 1:], labels[0, 1], labels[3, 2] = 7, 0, 9
    half = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return reasoning(words[half], patches[half], labels[half]).detach()


def under_torchrun(root: str, folder: str) -> None:
    """What each of the two processes of `test_two_processes_equal_one` does."""
    data, folder, results = load("toy", Path(root)), Path(folder), {}
    for name in CASES:
        model = case(name, devices=2)
        rows = list(train(model, data, model.config, folder / name, select=[]))
        results[name] = (rows[-1]["loss"], weights(model))
    results["embedded"] = embedded(small().eval(), data)
    rank = int(os.environ["RANK"])
    own = torch.arange(10.0).split([7, 3])[rank]  # another number of items in each process
    results["own"] = own.mean() * weight_of(torch.tensor(len(own)))
    results["words guessed"] = guessing(rank)
    odd = small(devices=2, batch_size=2 * (len(data.split("train")) // 2), epochs=1, max_steps=0, drop_last=False)
    results["rows of an odd batch"] = list(train(odd, data, odd.config, folder / "odd"))
    torch.save(results, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def data(toy_root):
    return load("toy", toy_root)


def on_a_node(root: str, folder: str) -> None:
    """What each of the two nodes of `test_two_nodes_equal_one` does."""
    model = small(nodes=2)
    list(train(model, load("toy", Path(root)), model.config, Path(folder), select=[]))
    torch.save(weights(model), Path(folder, f"{os.environ['RANK']}.pt"))
    torch.distributed.destroy_process_group()


def on_an_elastic_node(root: str, folder: str) -> None:
    """What each process of `test_a_process_that_dies_under_torchrun_is_taken_back` does, and does again."""
    model = small(DiesOnce, devices=2, max_steps=6, save_every=1)
    [row] = train(model, load("toy", Path(root)), model.config, Path(folder), select=[], resume=False)
    told = {"loss": row["loss"], "attempt": int(os.environ["TORCHELASTIC_RESTART_COUNT"]), "taken": model.taken}
    torch.save(told | {"weights": weights(model)}, Path(folder, f"{os.environ['RANK']}.pt"))
    torch.distributed.destroy_process_group()


def torchrun(function, *options: str, data, folder: Path) -> subprocess.Popen:
    """Starts torchrun on a script that calls a function of this module."""
    script = folder / "script.py"
    script.write_text(f"import sys\nfrom {__name__} import {function.__name__} as go\ngo(*sys.argv[1:])\n")
    command = [sys.executable, "-m", "torch.distributed.run", *options, script, data.root.parent, folder]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_two_nodes_equal_one(data, tmp_path):
    places = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}")
    nodes = [torchrun(on_a_node, *places, f"--node-rank={n}", data=data, folder=tmp_path) for n in range(2)]
    for node in nodes:
        _, said = node.communicate(timeout=120)
        assert node.returncode == 0, said[-3000:]
    model = small()
    list(train(model, data, model.config, tmp_path / "alone", select=[]))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert largest_difference(theirs, weights(model)) < 1e-6


def test_two_processes_equal_one(data, tmp_path):
    command = torchrun(under_torchrun, "--standalone", "--nproc-per-node=2", data=data, folder=tmp_path)
    _, said = command.communicate(timeout=280)
    assert command.returncode == 0, said[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in CASES:
        model = case(name, devices=1)
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        rows = list(train(model, data, model.config, tmp_path / f"{name} alone", select=[]))
        moved = largest_difference(start, weights(model))
        for loss, theirs in (first[name], second[name]):
            print(name, loss - rows[-1]["loss"], largest_difference(theirs, weights(model)), moved)
            assert loss == pytest.approx(rows[-1]["loss"], rel=1e-5), name
            assert largest_difference(theirs, weights(model)) < 1e-3 * moved, name
    alone = embedded(small().eval(), data)
    for theirs in (first["embedded"], second["embedded"]):
        assert all(torch.equal(a, b) for a, b in zip(theirs, alone, strict=True))
    assert (first["own"] + second["own"]) / 2 == torch.arange(10.0).mean()
    torch.testing.assert_close((first["words guessed"] + second["words guessed"]) / 2, guessing())
    assert first["rows of an odd batch"][-1]["t2i R@1"] == second["rows of an odd batch"][-1]["t2i R@1"]


def test_a_process_that_dies_under_torchrun_is_taken_back(data, tmp_path):
    elastic = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    command = torchrun(on_an_elastic_node, *elastic, data=data, folder=tmp_path)
    _, said = command.communicate(timeout=280)
    assert command.returncode == 0, said[-3000:]
    model = small(max_steps=6)
    [row] = train(model, data, model.config, tmp_path / "alone", select=[])
    for rank in range(2):
        told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert told["attempt"] == 1 and told["taken"] == 3  # three steps were kept, and the other three taken now
        assert told["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert largest_difference(told["weights"], weights(model)) < 1e-6


NOTEBOOK = """
from pathlib import Path
from reidlib.data import load
from reidlib.tests.test_distributed import small
from reidlib.tests.training import train
model = small(devices=2)
rows = [row for row in train(model, load("toy", Path(root)), model.config, Path(folder))]
import json, torch
json.dump(rows, open(Path(folder, "rows.json"), "w"))
torch.save(model.state_dict(), Path(folder, "weights.pt"))
"""


def test_a_notebook_cell_trains_with_two_processes(data, tmp_path):
    import nbformat

    cells = [nbformat.v4.new_code_cell('root = ""\nfolder = ""', metadata={"tags": ["parameters"]})]
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(NOTEBOOK)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "two.ipynb")
    given = {"root": str(data.root.parent), "folder": str(tmp_path / "two")}
    runner.execute(runner.Execution(runner.Notebook(tmp_path / "two.ipynb"), given, "two"))
    model = small()
    rows = list(train(model, data, model.config, tmp_path / "one"))
    theirs = json.loads((tmp_path / "two" / "rows.json").read_text())
    for one, two in zip(rows, theirs, strict=True):
        timed = ("seconds", "images_per_second")
        assert {k: v for k, v in two.items() if k not in timed} == pytest.approx(
            {k: v for k, v in one.items() if k not in timed}, rel=1e-5
        )
    assert largest_difference(torch.load(tmp_path / "two" / "weights.pt", weights_only=True), weights(model)) < 1e-6
    log = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in log] == theirs


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Fails, DataError, "^This process was told to stop.$"),
        (Dies, ReidError, "^Training process 1 of 2 was killed by SIGKILL; the same call goes on"),
    ],
)
def test_a_process_that_ends_early_ends_all_in_one_sentence(data, tmp_path, monkeypatch, kind, error, message):
    started, start = [], torch.multiprocessing.start_processes
    monkeypatch.setattr(
        torch.multiprocessing,
        "start_processes",
        lambda *given, **how: started.append(start(*given, **how)) or started[-1],
    )
    model = small(kind, devices=2)
    with pytest.raises(error, match=message):
        list(train(model, data, model.config, tmp_path, select=[]))
    [both] = started
    assert len(both.processes) == 2 and not any(process.is_alive() for process in both.processes)


def test_a_killed_starter_leaves_no_process_and_the_training_goes_on(data, tmp_path):
    script = "import sys\nfrom pathlib import Path\nfrom reidlib.data import load\n"
    script += "from reidlib.tests.test_distributed import slow, train\nmodel = slow(2)\n"
    script += "list(train(model, load('toy', Path(sys.argv[1])), model.config, Path(sys.argv[2]), select=[]))\n"
    (tmp_path / "no_guard.py").write_text(script)
    starter = subprocess.Popen([sys.executable, tmp_path / "no_guard.py", data.root.parent, tmp_path])
    state = tmp_path / "checkpoint" / "last.json"
    wait_for(lambda: state.exists() and json.loads(state.read_text())["step"] >= 2)
    started = children(starter.pid)
    assert len(started) == 2
    starter.kill()
    starter.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in started))
    assert 2 <= json.loads(state.read_text())["step"] < 6
    resumed, alone = slow(2), slow(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it would say that another training was found
        [row] = train(resumed, data, resumed.config, tmp_path, select=[])
    list(train(alone, data, alone.config, tmp_path / "alone", select=[]))
    assert largest_difference(weights(resumed), weights(alone)) < 1e-6


def slow(devices: int) -> Slow:
    return small(Slow, devices=devices, max_steps=6, save_every=1)


def children(parent: int) -> list[str]:
    """The training processes that a process has started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            own = f"\nPPid:\t{parent}\n" in file.read_text()
            found += [file.parent.name] if own and b"spawn_main" in (file.parent / "cmdline").read_bytes() else []
        except OSError:  # ended while it was looked at
            continue
    return found


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda", "devices": 2}, "devices=2 were asked for and the GPUs here are 1"),
        ({"nodes": 2}, "torchrun --nnodes=2 --nproc-per-node=1"),
        ({"devices": 3}, "batch_size=16 should be a multiple of the 3 devices"),
        ({"precision": "fp16"}, "precision='fp16' trains on a GPU only"),
    ],
)
def test_what_the_machine_cannot_give_is_one_sentence(data, tmp_path, monkeypatch, change, message):
    if "device" in change:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model = small(**change)
    with pytest.raises(ConfigError, match=message):
        list(train(model, data, model.config, tmp_path, select=[]))


def test_torchrun_and_the_settings_must_agree(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun started 2 processes, but devices=1 on nodes=1 are 1"):
        list(train(small(), data, small().config, tmp_path, select=[]))


def test_a_class_of_the_notebook_itself_is_one_sentence(data, tmp_path, monkeypatch):
    model, measure = small(devices=2), lambda model: {"t2i R@1": 0.0}
    with pytest.raises(ReidError, match="evaluate that other processes can import; one of them is defined in"):
        list(fit(model, TrainBatches(data, model, model.config), model.config, tmp_path, evaluate=measure))
    monkeypatch.setattr(Small, "__module__", "__main__")
    with pytest.raises(ReidError, match="a model, batches and evaluate that other processes can import; .*Small"):
        list(train(small(devices=2), data, small(devices=2).config, tmp_path, select=[]))


def test_a_batch_that_cannot_be_shared_equally_loses_what_is_over(data):
    size = len(TrainBatches(data, small(), small().config)) // 2 * 2 - 6
    model = small(devices=2, batch_size=size, drop_last=False)
    batches = TrainBatches(data, model, model.config)
    rest = len(batches) - size
    assert rest % 2 or rest > 4
    shares = [[len(batch["pids"]) for batch in batches.epoch(0, rank=rank, world=2)] for rank in range(2)]
    assert shares == [[size // 2, rest // 2]] * 2


def test_accumulated_half_batches_make_the_whole_where_pictures_do_not_meet(data, tmp_path):
    class Alone(Small):
        def losses(self, batch):
            photos, texts = self.embed_image(still(batch["image_ids"], 0)), self.embed_text(batch["text"])
            return {"apart": (photos - texts).square().sum(dim=1).mean()}

    whole, halves = small(Alone, max_steps=2), small(Alone, max_steps=2, batch_size=8, accumulate=2)
    for model in (whole, halves):
        list(train(model, data, model.config, tmp_path / str(model.config.accumulate), select=[]))
    assert largest_difference(weights(whole), weights(halves)) < 1e-6


def test_a_compiled_loss_is_compiled_anew_for_no_step(data, tmp_path, monkeypatch):
    compiled = []

    def counted(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    plain, fast = small(max_steps=8), small(max_steps=8, compile=True)
    for model in (plain, fast):
        list(train(model, data, model.config, tmp_path / str(model.config.compile), select=[]))
    assert largest_difference(weights(plain), weights(fast)) < 1e-6
    assert 1 <= len(compiled) <= 3  # once, and once more when the epochs done are seen to change
