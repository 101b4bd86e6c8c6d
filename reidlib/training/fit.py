"""The training loop of every method: `for row in fit(...)`, resumable, on the CPU, one GPU or several."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from reidlib import weights
from reidlib.config import Config
from reidlib.data.augment import BatchAugment
from reidlib.data.batches import TrainBatches
from reidlib.devices import pick_device
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.methods.base import Method
from reidlib.paths import owned, write_text
from reidlib.progress import tqdm
from reidlib.training import processes
from reidlib.training.schedules import schedule

LOOK_EVERY = 10  # steps between looks at the loss for NaN; each look waits for the GPU


def fit(
    model: Method,
    batches: TrainBatches,
    config: Config,
    folder: Path,
    *,
    evaluate: Callable[[Method], dict[str, float]] | None = None,
    resume: bool = True,
    log: Callable[[dict], None] | None = None,
) -> Iterator[dict]:
    """Trains `model` on `batches` and yields a row of metrics for each epoch.

    A row holds epoch, the mean of every loss, their sum as `loss`, lr, seconds, images_per_second, and what `evaluate`
    measures ("t2i R@1" and so on); `config.select_by` names the metric that chooses the best epoch, without `evaluate`
    the last is the best. The rows also go to `folder/log.jsonl`, and each new one to `log`.

    `folder/checkpoint` holds last (with the optimiser) and best. With `resume`, a training with the same settings, data
    and first weights that was cut off goes on from its last checkpoint and yields its earlier rows again, and a
    finished one is taken as it is, which is said; `resume=False` begins anew. Every step's randomness follows from
    (seed, step) alone, so on a CPU a training that was cut off ends with the very weights of one that was not. When
    the generator is exhausted, the model holds the weights of the best epoch. Raises ReidError when the loss is no
    longer a number, or another run is writing to `folder`.

    With `config.devices` above 1, `fit` starts a process for each, in a notebook as in a script, and hands on their
    rows; `model` changes only at the end. Under torchrun the processes exist and each of them calls `fit`; those that
    torchrun starts again (`--max-restarts`) go on from the last checkpoint. All share out every batch of
    `config.batch_size` pictures and compare the features of all of them, so the number of devices changes nothing but
    the speed (and which random numbers augmentation and dropout draw).
    """
    folder = Path(folder)
    about = {
        "method": model.name,
        "num_classes": model.num_classes,
        "towers": model.made_of,
        "config": json.loads(json.dumps(config.as_dict())),
        "begun_with": {"data": batches.fingerprint, "weights": weights.fingerprint(model)},
    }
    earlier = _earlier(folder, about) if resume or processes.restarted() else None
    if earlier and earlier["done"]:
        if processes.first():
            print(f"The training in {folder} had finished: its {len(earlier['rows'])} epochs are taken as they are.")
        yield from earlier["rows"]
    else:
        job = {"batches": batches, "config": config, "folder": folder, "evaluate": evaluate, "about": about}
        job["resume"] = earlier is not None
        known = len(earlier["rows"]) if earlier else 0
        rows = processes.rows_of(train, model, job) if processes.must_start(config) else train(model, **job)
        for number, row in enumerate(rows):
            if log and number >= known:
                log(row)
            yield row
    model.to(pick_device(config.device))
    weights.load(folder / "checkpoint" / "best.safetensors", model)
    model.eval()


def train(
    model: Method, batches: TrainBatches, config: Config, folder: Path, evaluate, about: dict, resume: bool
) -> Iterator[dict]:
    """What each process of a training does; the first of them writes. `about` goes into every checkpoint."""
    fabric = processes.join(config)
    rank, world = fabric.global_rank, fabric.world_size
    last_file, best_file = (folder / "checkpoint" / f"{name}.safetensors" for name in ("last", "best"))
    with (
        owned(folder / "checkpoint" / ".lock", folder) if rank == 0 else nullcontext(),
        processes.shared_statistics(model) if world > 1 else nullcontext(),
    ):
        if config.checkpoint_activations:
            model.checkpoint_activations()
        model.to(fabric.device)
        optimizer = _optimizer(model, config)
        rates = [group["lr"] for group in optimizer.param_groups]
        wrapped, optimizer = fabric.setup(model, optimizer)
        wrapped.mark_forward_method("losses")
        losses_of = torch.compile(wrapped.losses) if config.compile else wrapped.losses
        augment = BatchAugment(config.augment, model.image_size, model.mean, model.std)
        per_epoch = batches.steps_per_epoch
        factor = schedule(config, per_epoch)
        steps = min(config.epochs * per_epoch, config.max_steps or math.inf)

        step, rows, best, totals = 0, [], -math.inf, {}
        scaler = fabric.strategy.precision  # scales the gradients of fp16
        if resume:
            state = weights.load(last_file, model, optimizer)
            step, rows, best = state["step"], state["rows"], -math.inf if state["best"] is None else state["best"]
            totals = {name: torch.tensor(value, device=fabric.device) for name, value in state["totals"].items()}
            scaler.load_state_dict(state["scaler"])
            yield from rows

        def save(file: Path, optimizer=None, totals=(), done: bool = False) -> None:
            state = about | {"step": step, "rows": rows, "best": best if math.isfinite(best) else None}
            state |= {"totals": dict(totals), "scaler": scaler.state_dict(), "done": done}
            if rank == 0:
                weights.save(file, model, state, optimizer)

        while step < steps:
            epoch, begun, pictures = step // per_epoch, time.perf_counter(), 0
            stop = min((epoch + 1) * per_epoch, steps)
            model.train()
            served = batches.epoch(epoch, (step - epoch * per_epoch) * config.accumulate, rank, world)
            words = f"epoch {epoch + 1} of {math.ceil(steps / per_epoch)}"
            for now in tqdm(range(step, stop), words, unit=" steps", leave=False, disable=rank > 0):
                torch.manual_seed(hash((config.seed, now, rank)) % 2**31)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor(now)
                parts = list(islice(served, config.accumulate))
                for number, batch in enumerate(parts, start=1):
                    batch = _on_device(batch, fabric.device, augment) | {"progress": now / per_epoch}
                    with fabric.no_backward_sync(wrapped, enabled=number < len(parts)):
                        losses = losses_of(batch)
                        fabric.backward(sum(losses.values()) / len(parts))
                    for name, value in losses.items():
                        totals[name] = totals.get(name, 0) + value.detach() / len(parts)
                    pictures += len(batch["pids"]) * world
                if config.clip_grad:
                    fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip_grad, error_if_nonfinite=False)
                optimizer.step()
                optimizer.zero_grad()
                step = now + 1
                if step % LOOK_EVERY == 0 or step == stop:
                    _stop_on_nan(totals, step)
                if config.save_every and step % config.save_every == 0 and step < stop:
                    save(last_file, optimizer, _over_processes(totals, fabric))
            means = {
                name: value / (step - epoch * per_epoch) for name, value in _over_processes(totals, fabric).items()
            }
            seconds = time.perf_counter() - begun
            row = {"epoch": epoch + 1, "loss": sum(means.values()), **means, "lr": rates[0] * factor(step - 1)}
            row |= {"seconds": round(seconds, 2), "images_per_second": round(pictures / seconds, 1)}
            if evaluate:
                row |= evaluate(model)
                if config.select_by not in row:
                    measured = [name for name in row if name.endswith("R@1")]
                    raise ConfigError(f"select_by={config.select_by!r} is not measured; choose from {measured}.")
                row["best"] = row[config.select_by] > best
                best = max(best, row[config.select_by])
            rows, totals = [*rows, row], {}
            if rank == 0:  # first, so that no checkpoint knows of an epoch that the log lacks
                write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            if row.get("best", True):
                save(best_file)
            save(last_file, optimizer, done=step == steps)
            fabric.barrier()
            yield row


def _earlier(folder: Path, about: dict) -> dict | None:
    """The state of an earlier training with the same settings, data and first weights."""
    last = folder / "checkpoint" / "last.safetensors"
    if not last.is_file():
        return None
    try:
        state = weights.state_of(last)
    except CheckpointError as error:
        warnings.warn(f"{error} Training starts from the beginning.", stacklevel=3)
        return None
    other = [name for name in ("method", "config", "begun_with") if state.get(name) != about[name]]
    if other and not state.get("done"):
        what = {"begun_with": "data or first weights", "config": "settings"}.get(other[0], other[0])
        warnings.warn(f"The unfinished training in {last.parent} has other {what}; a new one begins.", stacklevel=3)
    return None if other else state


def _optimizer(model: Method, config: Config) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    groups = [group for group in model.parameter_groups(config) if group["params"]]
    # Fabric clips scaled gradients only for an optimiser that leaves their scale to it, which fused ones do not
    fused = not (config.precision == "fp16" and config.clip_grad)
    return kinds[config.optimizer](groups, betas=config.betas, eps=config.eps, fused=fused)


def _on_device(batch: dict[str, Tensor], device: torch.device, augment: BatchAugment) -> dict[str, Tensor]:
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch | {name: augment(batch[name]) for name in ("images", "sketch", "photo") if name in batch}


def _over_processes(totals: dict[str, Tensor], fabric) -> dict[str, float]:
    """The means over all processes, whose losses differ where they are taken before features are gathered."""
    return {name: float(fabric.all_reduce(value)) for name, value in totals.items()}


def _stop_on_nan(totals: dict[str, Tensor], step: int) -> None:
    for name, value in totals.items():
        if not torch.isfinite(value):
            raise ReidError(
                f"The loss {name} was no number by step {step}; the last checkpoint is from before. "
                "A smaller lr, a longer warm-up or precision='fp32' helps as a rule."
            )
