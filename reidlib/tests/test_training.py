"""The training loop: schedules, resuming to the last bit, the best epoch, clear stops."""

import json
import math
from dataclasses import replace

import pytest
import torch

from reidlib import weights
from reidlib.config import Config
from reidlib.data import load
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.training import fit
from reidlib.training.schedules import schedule


@pytest.fixture(scope="module")
def data(toy_root):
    return load("toy", toy_root)


def settings(**more):
    return ClipConfig.preset("toy", **{"backbone": "toy-random", "epochs": 2, "batch_size": 32, "max_steps": 5} | more)


def new_model(config):
    torch.manual_seed(config.seed)
    return Clip(config)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_schedules():
    def factors(**more):
        config = Config(epochs=4, warmup_epochs=1, warmup_from=0.1, **more)
        return [schedule(config, 2)(step) for step in range(8)]

    assert factors(schedule="constant") == pytest.approx([0.1, 0.55, 1, 1, 1, 1, 1, 1])
    assert factors(schedule="linear")[2:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert factors(schedule="cosine")[5] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    by_epoch = factors(schedule="step", milestones=(2, 3), decay=0.1, schedule_every="epoch")
    assert by_epoch == pytest.approx([0.1, 0.1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert factors(schedule="constant", warmup_steps=3, warmup_shape="log")[:3] == pytest.approx(
        [0, math.log(2) / math.log(3), 1]
    )
    with pytest.raises(ConfigError, match="schedule should be"):
        schedule(Config(schedule="sine"), 2)


def test_a_run_cut_off_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    config = settings(save_every=1)
    whole = new_model(config)
    rows = list(fit(whole, data, config, tmp_path / "whole", select=[]))

    cut, calls = new_model(config), 0
    honest = Clip.losses

    def dies_at_the_fourth_step(self, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return honest(self, batch)

    monkeypatch.setattr(Clip, "losses", dies_at_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        list(fit(cut, data, config, tmp_path / "cut", select=[]))
    monkeypatch.setattr(Clip, "losses", honest)
    resumed = new_model(config)
    again = list(fit(resumed, data, config, tmp_path / "cut", select=[]))
    for name, tensor in copied(whole).items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-6)


@pytest.fixture
def training(data, tmp_path, monkeypatch):
    """Calls fit on outputs/run/part and returns how many steps were taken and the rows; a step may interrupt it."""
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    honest, taken = Clip.losses, []

    def train(interrupt_at=None, model=None, records=data, **more):
        taken.clear()
        config = settings(max_steps=2, save_every=1, **more)

        def losses(self, batch):
            if len(taken) == interrupt_at:
                raise KeyboardInterrupt
            taken.append(batch)
            return honest(self, batch)

        monkeypatch.setattr(Clip, "losses", losses)
        rows = list(fit(model or new_model(config), records, config, tmp_path / "run" / "part", select=[]))
        return len(taken), rows

    return train


def test_a_finished_training_is_kept_until_its_notebook_is_finished_too(training, tmp_path):
    run = tmp_path / "run"
    steps, rows = training()
    assert steps == 2
    assert [json.loads(line) for line in (run / "part" / "log.jsonl").read_text().splitlines()] == rows
    assert training() == (0, rows), "killed before its results were measured"
    (run / "metrics.json").touch()
    assert training()[0] == 2, "all was done, and is asked for once more"
    (run / "metrics.json").touch()
    (run / "executed.partial.ipynb").touch()
    assert training()[0] == 0, "executed headless and killed after its results were measured"
    (run / "executed.ipynb").touch()
    assert training()[0] == 2


def test_other_settings_weights_or_data_begin_anew(training, data):
    other = replace(data, table=data.table.drop(index=data.table.index[-1]))
    darker = new_model(settings())
    with torch.no_grad():
        darker.clip.logit_scale.sub_(1)
    assert training()[0] == 2
    for change in ({"lr": 1e-3}, {"model": darker}, {"records": other}):
        assert training(**change)[0] == 2, change
    with pytest.raises(KeyboardInterrupt):
        training(interrupt_at=1)
    with pytest.warns(UserWarning, match="The unfinished training in .*checkpoint has other data or first weights"):
        assert training(records=other)[0] == 2
    with pytest.raises(KeyboardInterrupt):
        training(interrupt_at=1)
    assert training()[0] == 1


def test_the_best_epoch_is_kept(data, tmp_path):
    config = settings(epochs=3, max_steps=0, lr=3e-4)
    model = new_model(config)
    rows = list(fit(model, data, config, tmp_path))
    best = max(range(3), key=lambda epoch: rows[epoch]["t2i R@1"])
    state = weights.state_of(tmp_path / "checkpoint" / "best.safetensors")
    assert state["rows"][-1]["epoch"] == best + 1
    other = new_model(config)
    weights.load(tmp_path / "checkpoint" / "best.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(copied(model).values(), copied(other).values(), strict=True))


def test_accumulated_steps_average_their_batches(data, tmp_path):
    config = settings(max_steps=1, epochs=1, accumulate=3)
    (row,) = fit(new_model(config), data, config, tmp_path, select=[])
    assert math.isfinite(row["loss"]) and row["loss"] == pytest.approx(row["t2i"])


def test_a_loss_that_is_no_number_stops_in_one_sentence(data, tmp_path, monkeypatch):
    config = settings()
    monkeypatch.setattr(Clip, "losses", lambda self, batch: {"t2i": self.clip.logit_scale * float("nan")})
    with pytest.raises(ReidError, match="The loss t2i was no number by step"):
        list(fit(new_model(config), data, config, tmp_path, select=[]))
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer should be"),
        ({"sampler": "best"}, "sampler should be"),
        ({"select_by": "R@1"}, "is not measured here"),
        ({"device": "cuda"}, "no CUDA GPU"),
        ({"precision": "int8"}, "precision should be"),
        ({"augment": "mixup"}, "augmentation"),
    ],
)
def test_impossible_settings(data, tmp_path, change, message):
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    config = settings(max_steps=1, **change)
    with pytest.raises(ConfigError, match=message):
        list(fit(new_model(config), data, config, tmp_path))


def test_checkpoints_that_do_not_fit(data, tmp_path):
    config = settings()
    model = new_model(config)
    file = tmp_path / "last.safetensors"
    weights.save(file, model, {"step": 1})
    assert weights.load(file, new_model(config)) == {"step": 1}
    with pytest.raises(CheckpointError, match="holds weights only"):
        weights.load(file, new_model(config), torch.optim.AdamW(model.parameters()))
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        weights.load(file, torch.nn.Linear(2, 2))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        weights.load(file, model)
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        weights.load(tmp_path / "none.safetensors", model)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model, file = torch.nn.Linear(2, 2), tmp_path / "last.safetensors"
    weights.save(file, model, {"step": 1})

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(ReidError, match="could not be written"):
        weights.save(file, model, {"step": 2})
    assert weights.state_of(file) == {"step": 1}
    assert sorted(left.name for left in tmp_path.iterdir()) == ["last.json", "last.safetensors"]


def test_mixed_precision_keeps_float32_weights(data, tmp_path):
    config = settings(precision="bf16", max_steps=2)
    model = new_model(config)
    (row,) = fit(model, data, config, tmp_path, select=[])
    assert math.isfinite(row["loss"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
