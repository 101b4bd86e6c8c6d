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
from reidlib.tests.training import train
from reidlib.training import processes, tensorboard
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
        Config(schedule="sine")


def test_a_run_cut_off_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    config = settings(save_every=1)
    whole = new_model(config)
    rows = list(train(whole, data, config, tmp_path / "whole", select=[]))

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
        list(train(cut, data, config, tmp_path / "cut", select=[]))
    monkeypatch.setattr(Clip, "losses", honest)
    resumed = new_model(config)
    again = list(train(resumed, data, config, tmp_path / "cut", select=[]))
    for name, tensor in copied(whole).items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-6)


@pytest.fixture
def training(data, tmp_path, monkeypatch):
    """Calls fit on outputs/run/part and returns how many steps were taken and the rows; a step may interrupt it."""
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    honest, taken = Clip.losses, []

    def run(interrupt_at=None, model=None, records=data, resume=True, log=None, **more):
        taken.clear()
        config = settings(max_steps=2, save_every=1, **more)

        def losses(self, batch):
            if len(taken) == interrupt_at:
                raise KeyboardInterrupt
            taken.append(batch)
            return honest(self, batch)

        monkeypatch.setattr(Clip, "losses", losses)
        folder, how = tmp_path / "run" / "part", {"select": [], "resume": resume, "log": log}
        rows = list(train(model or new_model(config), records, config, folder, **how))
        return len(taken), rows

    return run


def test_a_training_is_taken_up_where_its_caller_says_so(training, tmp_path, capsys):
    steps, rows = training()
    assert steps == 2 and "had finished" not in capsys.readouterr().out
    assert [json.loads(line) for line in (tmp_path / "run/part/log.jsonl").read_text().splitlines()] == rows
    (tmp_path / "run" / "metrics.json").touch()
    model = new_model(settings())
    assert training(model=model) == (0, rows)
    assert "run/part had finished: its 1 epochs are taken as they are." in capsys.readouterr().out
    assert weights.fingerprint(model) != weights.fingerprint(new_model(settings()))
    assert training(resume=False)[0] == 2
    with pytest.raises(KeyboardInterrupt):
        training(interrupt_at=1, resume=False)
    assert training(resume=False)[0] == 2


def test_each_new_row_is_logged(training):
    logged = []
    assert training(log=logged.append)[1] == logged
    assert len(training(log=logged.append)[1]) == len(logged)  # those of a finished training are not new


def test_rows_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tensorboard(tmp_path)
    for epoch in (1, 2):
        log({"epoch": epoch, "loss": 1 / epoch, "t2i R@1": 10.0 * epoch, "best": True})
    seen = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(seen.Tags()["scalars"]) == ["loss", "t2i/R@1"]
    assert [(event.step, event.value) for event in seen.Scalars("t2i/R@1")] == [(1, 10.0), (2, 20.0)]


def test_two_trainings_in_one_folder_are_one_sentence(data, tmp_path):
    config = settings()
    model = new_model(config)
    first = train(model, data, settings(max_steps=0), tmp_path, select=[])
    next(first)
    with pytest.raises(ReidError, match=f"Another run is writing {tmp_path}"):
        list(train(new_model(config), data, config, tmp_path, select=[], resume=False))
    first.close()
    list(train(new_model(config), data, config, tmp_path, select=[], resume=False))


def test_the_scale_of_fp16_gradients_goes_on_where_it_was(training, tmp_path, monkeypatch):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    scalers = []

    def join(config):
        scalers.append(torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1))
        fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scalers[-1]))
        monkeypatch.setattr(fabric.strategy.precision, "_desired_input_dtype", torch.bfloat16)
        return fabric

    monkeypatch.setattr(processes, "join", join)
    with pytest.raises(KeyboardInterrupt):
        training(interrupt_at=1)
    state = weights.state_of(tmp_path / "run" / "part" / "checkpoint" / "last.safetensors")
    assert state["scaler"]["scale"] == scalers[0].get_scale() == 512  # doubled by a step that went well
    assert training()[0] == 1 and scalers[1].get_scale() == 1024


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
    rows = list(train(model, data, config, tmp_path))
    best = max(range(3), key=lambda epoch: rows[epoch]["t2i R@1"])
    state = weights.state_of(tmp_path / "checkpoint" / "best.safetensors")
    assert state["rows"][-1]["epoch"] == best + 1
    other = new_model(config)
    weights.load(tmp_path / "checkpoint" / "best.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(copied(model).values(), copied(other).values(), strict=True))


def test_accumulated_steps_average_their_batches(data, tmp_path):
    config = settings(max_steps=1, epochs=1, accumulate=3)
    (row,) = train(new_model(config), data, config, tmp_path, select=[])
    assert math.isfinite(row["loss"]) and row["loss"] == pytest.approx(row["t2i"])


def test_a_loss_that_is_no_number_stops_in_one_sentence(data, tmp_path, monkeypatch):
    config = settings()
    monkeypatch.setattr(Clip, "losses", lambda self, batch: {"t2i": self.clip.logit_scale * float("nan")})
    with pytest.raises(ReidError, match="The loss t2i was no number by step"):
        list(train(new_model(config), data, config, tmp_path, select=[]))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer should be"),
        ({"sampler": "best"}, "sampler should be"),
        ({"select_by": "R@1"}, "is not measured"),
        ({"device": "cuda"}, "no CUDA GPU"),
        ({"precision": "int8"}, "precision should be"),
        ({"augment": "mixup"}, "augmentation"),
    ],
)
def test_impossible_settings(data, tmp_path, change, message):
    if change == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=message):
        config = settings(max_steps=1, **change)
        list(train(new_model(config), data, config, tmp_path))


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
    (row,) = train(model, data, config, tmp_path, select=[])
    assert math.isfinite(row["loss"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
