"""The training loop of every method: `for row in fit(...)`, resumable, on the CPU, one GPU or several."""

import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from reidlib import weights
from reidlib.config import Config
from reidlib.data import PersonData
from reidlib.data.batches import TrainSet, data_pixels
from reidlib.data.transforms import BatchAugment
from reidlib.devices import pick_device, pick_precision
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.evaluation import Encoder, Task, evaluate, tasks
from reidlib.methods.base import Method
from reidlib.paths import outputs_dir, write_text
from reidlib.training import processes
from reidlib.training.schedules import schedule

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
LOOK_EVERY = 10  # steps between looks at the loss for NaN; each look waits for the GPU


def fit(
    model: Method, data: PersonData, config: Config, folder: Path, *, select: list[Task] | None = None
) -> Iterator[dict]:
    """Trains `model` on the training split and yields a row of metrics for each epoch.

    A row holds epoch, the mean of every loss, their sum as `loss`, lr, seconds, images_per_second, and each selection
    metric as "t2i R@1" and so on. `select` are the tasks on which the best epoch is chosen by `config.select_by`; left
    out, they are what `config.select_on` offers for the method's queries. The rows also go to `folder/log.jsonl`.

    `folder/checkpoint` holds last (with the optimiser) and best. A training that was cut off goes on from its last
    checkpoint when it is started again with the same settings, data and first weights, and yields its earlier rows
    again; every step's randomness follows from (seed, step) alone, so on a CPU it ends with the very weights of one
    that was not cut off. One that was finished, but not the notebook around it, is taken as it is. When the generator
    is exhausted, the model holds the weights of the best epoch. Raises ReidError when the loss is no longer a number.

    With `config.devices` above 1, `fit` starts a process for each, in a notebook as in a script, and hands on their
    rows; `model` changes only at the end. Under torchrun the processes exist and each of them calls `fit`. All share
    out every batch of `config.batch_size` pictures and compare the features of all of them, so the number of devices
    changes nothing but the speed (and which random numbers augment a picture).
    """
    folder = Path(folder)
    if processes.must_start(config):
        yield from processes.rows_of(folder, model, config, data=data, select=select)
        model.to(pick_device(config.device))
        _take_best(folder, model)
    else:
        yield from _Trainer(model, data, config, folder, select).run()


def _used(checkpoint: Path) -> bool:
    """Whether the notebook around a finished training was finished since: executed headless, else its results measured.

    (A notebook that is being executed headless has an executed.partial.ipynb.)
    """
    outputs = outputs_dir().resolve()
    run = next((folder for folder in checkpoint.resolve().parents if folder.parent == outputs), checkpoint.parent)
    last = run / ("executed.ipynb" if (run / "executed.partial.ipynb").exists() else "metrics.json")
    return last.exists() and last.stat().st_mtime > checkpoint.stat().st_mtime


def _take_best(folder: Path, model: Method) -> None:
    best = folder / "checkpoint" / "best.safetensors"
    if best.is_file():
        weights.load(best, model)
    model.eval()


class _Trainer:
    """One run of `fit`, cut into what it sets up, does in a step, and keeps."""

    def __init__(self, model: Method, data: PersonData, config: Config, folder: Path, select: list[Task] | None):
        from lightning_fabric import Fabric  # takes seconds to import, and only training needs it

        device = pick_device(config.device)
        precision = pick_precision(config.precision, device)
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision='fp16' trains on a GPU only; on the CPU use 'fp32' or 'bf16'.")
        several = config.devices * config.nodes > 1
        self.fabric = Fabric(
            accelerator=device.type,
            devices=config.devices,
            num_nodes=config.nodes,
            precision=PRECISIONS[precision],
            # not every loss reaches every weight: CLIP trained on sketches leaves its text tower alone
            strategy="ddp_find_unused_parameters_true" if several else "auto",
        )
        self.fabric.launch()
        self.config, self.folder = config, folder
        self.begun_with = {"data": data.fingerprint(), "weights": weights.fingerprint(model)}
        self.pixels = data_pixels(data, model.preprocess)
        self.train = TrainSet(
            data, self.pixels, model.trains_on, seed=config.seed, back_translation=config.back_translation
        )
        self.train.tokenize(model.tokenize if "text" in model.trains_on else model.tokenize_turns)
        self.select = tasks(data, config.select_on, model.reads) if select is None else select
        self.augment = BatchAugment(config.augment, model.image_size, model.mean, model.std)
        world = self.fabric.world_size
        self.steps_per_epoch = math.ceil(
            self.train.steps(config.batch_size, config.drop_last, world) / config.accumulate
        )
        self.factor = schedule(config, self.steps_per_epoch)

        if config.checkpoint_activations:
            model.checkpoint_activations()
        # Fabric clips scaled gradients only for an optimiser that leaves their scale to it, which fused ones do not
        optimizer = _optimizer(model, config, fused=not (precision == "fp16" and config.clip_grad))
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.model = model.to(self.fabric.device)
        self.hooks: list = []
        if several:
            self._share_statistics()
            model.gather = self._gather
        self.wrapped, self.optimizer = self.fabric.setup(model, optimizer)
        self.wrapped.mark_forward_method("losses")
        self.losses = torch.compile(self.wrapped.losses) if config.compile else self.wrapped.losses
        self.rows: list[dict] = []
        self.best = -math.inf
        self.step = 0

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[dict]:
        totals = self._resume()
        yield from self.rows
        last_step = self.config.epochs * self.steps_per_epoch
        if self.config.max_steps:
            last_step = min(last_step, self.config.max_steps)
        while self.step < last_step:
            epoch, begun, self.pictures = self.step // self.steps_per_epoch, time.perf_counter(), 0
            stop = min((epoch + 1) * self.steps_per_epoch, last_step)
            totals = self._epoch(epoch, stop, totals)
            seconds = time.perf_counter() - begun
            row = {
                "epoch": epoch + 1,
                **self._means(self._over_processes(totals)),
                "lr": self.rates[0] * self.factor(self.step - 1),
            }
            row |= {"seconds": round(seconds, 2), "images_per_second": round(self.pictures / seconds, 1)}
            self._finish_epoch(row, done=stop == last_step)
            totals = {}
            yield row
        self._release()
        _take_best(self.folder, self.model)

    def _epoch(self, epoch: int, stop: int, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The optimiser steps up to `stop`; returns the sums of the losses over the epoch's steps."""
        from tqdm.auto import tqdm

        config, fabric = self.config, self.fabric
        self.model.train()
        first = self.step - epoch * self.steps_per_epoch
        batches = self.train.batches(
            epoch,
            config.batch_size,
            sampler=config.sampler,
            drop_last=config.drop_last,
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=config.workers,
            skip=first * config.accumulate,
        )
        quiet = fabric.global_rank > 0 or "TQDM_DISABLE" in os.environ  # which tqdm's notebook bar does not look at
        for _ in tqdm(range(self.step, stop), desc=f"epoch {epoch + 1}", leave=False, disable=quiet):
            torch.manual_seed(hash((config.seed, self.step, fabric.global_rank)) % 2**31)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.factor(self.step)
            losses = self._accumulated(batches, progress=self.step / self.steps_per_epoch)
            if config.clip_grad:
                fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=config.clip_grad, error_if_nonfinite=False)
            self.optimizer.step()
            self.optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value
            self.step += 1
            if self.step % LOOK_EVERY == 0 or self.step == stop:
                self._stop_on_nan(totals)
            if config.save_every and self.step % config.save_every == 0 and self.step < stop:
                self._save(self._over_processes(totals))
        return totals

    def _accumulated(self, batches: Iterator[dict], progress: float) -> dict[str, Tensor]:
        """Forward and backward over the batches of one optimiser step; returns the mean losses, detached."""
        total: dict[str, Tensor] = {}
        parts = [batch for batch in (next(batches, None) for _ in range(self.config.accumulate)) if batch is not None]
        for number, batch in enumerate(parts, start=1):
            self.pictures += len(batch["pids"]) * self.fabric.world_size
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(parts)):
                losses = self.losses(self._on_device(batch) | {"progress": progress})
                self.fabric.backward(sum(losses.values()) / len(parts))
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(parts)
        return total

    def _gather(self, features: Tensor) -> Tensor:
        """The features of all processes with their gradients, (B, ...) -> (processes * B, ...)."""
        gathered = self.fabric.all_gather(features, sync_grads=True)
        if gathered.requires_grad:  # torch 2.15 sums a gradient that is not contiguous wrongly on the CPU (gloo)
            gathered.register_hook(Tensor.contiguous)
        return gathered.flatten(0, 1)

    def _share_statistics(self) -> None:
        """Lets batch normalisation see the features of all processes, as it would in one.

        torch's SyncBatchNorm does it for GPUs only. The features here are a few vectors a picture.
        """

        def whole(norm, args):
            return (self._gather(args[0]),) if norm.training else None

        def share(norm, args, output):
            return output.chunk(self.fabric.world_size)[self.fabric.global_rank] if norm.training else None

        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                self.hooks += [module.register_forward_pre_hook(whole), module.register_forward_hook(share)]

    def _release(self) -> None:
        """Leaves the model as one that a single process can use, also where all processes keep it (torchrun)."""
        for hook in self.hooks:
            hook.remove()
        self.model.__dict__.pop("gather", None)

    def _over_processes(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means over all processes, whose losses differ where they are taken before features are gathered."""
        return {name: self.fabric.all_reduce(value) for name, value in totals.items()}

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {name: value.to(self.fabric.device, non_blocking=True) for name, value in batch.items()}
        for name in ("images", "sketch"):
            if name in batch:
                batch[name] = self.augment(batch[name])
        return batch

    def _finish_epoch(self, row: dict, done: bool) -> None:
        """Measures, keeps the best and the last checkpoint, and writes the log line."""
        if self.select:
            encoder = Encoder(self.model, self.pixels)
            rows, _ = evaluate(encoder, self.select)
            row |= {f"{r['task']} {name}": r[name] for r in rows for name in ("R@1", "R@5", "R@10", "mAP", "mINP")}
            score = row.get(self.config.select_by)
            if score is None:
                measured = [name for name in row if name.endswith("R@1")]
                raise ConfigError(f"select_by={self.config.select_by!r} is not measured here; choose from {measured}.")
            row["best"] = score > self.best
            self.best = max(self.best, score)
        self.rows.append(row)
        if self.fabric.global_rank == 0:  # first, so that no checkpoint knows of an epoch that the log lacks
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.rows))
        if row.get("best", True) and self.fabric.global_rank == 0:
            weights.save(self.folder / "checkpoint" / "best.safetensors", self.model, self._state())
        self._save({}, done)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _state(self, totals: dict[str, Tensor] | None = None, done: bool = False) -> dict:
        return {
            "method": self.model.name,
            "num_classes": self.model.num_classes,
            "towers": self.model.made_of,
            "config": json.loads(json.dumps(self.config.as_dict())),
            "begun_with": self.begun_with,
            "step": self.step,
            "rows": self.rows,
            "best": self.best if math.isfinite(self.best) else None,
            "totals": {name: float(value) for name, value in (totals or {}).items()},
            "done": done,
        }

    def _save(self, totals: dict[str, Tensor], done: bool = False) -> None:
        if self.fabric.global_rank == 0:
            last = self.folder / "checkpoint" / "last.safetensors"
            weights.save(last, self.model, self._state(totals, done), self.optimizer)
        self.fabric.barrier()

    def _resume(self) -> dict[str, Tensor]:
        """Takes up an earlier training of the same kind; returns the loss sums of its unfinished epoch."""
        last = self.folder / "checkpoint" / "last.safetensors"
        if not last.is_file():
            return {}
        try:
            state = weights.state_of(last)
        except CheckpointError as error:
            warnings.warn(f"{error} Training starts from the beginning.", stacklevel=4)
            return {}
        mine = self._state()
        other = [name for name in ("method", "config", "begun_with") if state.get(name) != mine[name]]
        if other and not state["done"]:
            what = {"begun_with": "data or first weights", "config": "settings"}.get(other[0], other[0])
            warnings.warn(f"The unfinished training in {last.parent} has other {what}; a new one begins.", stacklevel=4)
        if other or (state["done"] and _used(last)):
            return {}
        weights.load(last, self.model, self.optimizer)
        self.step, self.rows = state["step"], state["rows"]
        self.best = -math.inf if state["best"] is None else state["best"]
        return {name: torch.tensor(value, device=self.fabric.device) for name, value in state["totals"].items()}

    def _means(self, totals: dict[str, Tensor]) -> dict[str, float]:
        steps = (self.step - 1) % self.steps_per_epoch + 1
        means = {name: float(value) / steps for name, value in totals.items()}
        return {"loss": sum(means.values()), **means}

    def _stop_on_nan(self, totals: dict[str, Tensor]) -> None:
        for name, value in totals.items():
            if not torch.isfinite(value):
                raise ReidError(
                    f"The loss {name} was no number by step {self.step}; the last checkpoint is from before. "
                    "A smaller lr, a longer warm-up or precision='fp32' helps as a rule."
                )


def _optimizer(model: Method, config: Config, fused: bool) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if config.optimizer not in kinds:
        raise ConfigError(f"optimizer should be 'adamw' or 'adam' and got {config.optimizer!r}.")
    groups = [group for group in model.parameter_groups(config) if group["params"]]
    return kinds[config.optimizer](groups, betas=config.betas, eps=config.eps, fused=fused)
