"""The processes of a training on several devices: started here unless torchrun did, watched, and ended together."""

import atexit
import io
import logging
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import distributed, multiprocessing, nn

from reidlib import errors
from reidlib.backbones import from_spec
from reidlib.config import Config
from reidlib.devices import gather, pick_device, pick_precision
from reidlib.errors import ConfigError, ReidError
from reidlib.methods.base import Method

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def must_start(config: Config) -> bool:
    """True if a training needs processes that nobody has started yet.

    Raises ConfigError where `devices` and `nodes` ask for what the machine or torchrun does not give, or for processes
    that cannot share `batch_size` equally.
    """
    device, wanted = pick_device(config.device), config.devices * config.nodes
    if wanted < 1 or config.batch_size % wanted:
        raise ConfigError(f"batch_size={config.batch_size} should be a multiple of the {wanted} devices that share it.")
    if distributed.is_torchelastic_launched():
        if int(os.environ["WORLD_SIZE"]) != wanted:
            raise ConfigError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but devices={config.devices} on "
                f"nodes={config.nodes} are {wanted}; expected as many."
            )
        return False
    if config.nodes > 1:
        raise ConfigError(
            f"nodes={config.nodes} need a process for every device on every node; start a script with "
            f"`torchrun --nnodes={config.nodes} --nproc-per-node={config.devices}`."
        )
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(f"devices={config.devices} were asked for and the GPUs here are {torch.cuda.device_count()}.")
    return wanted > 1


def first() -> bool:
    """True in the process that speaks for all, as any process alone does."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """True if torchrun has started this process in the place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def join(config: Config):
    """Lightning's Fabric (device, precision, gradients averaged over processes) of this process and the others."""
    from lightning_fabric import Fabric  # takes seconds to import, and only training needs it

    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision='fp16' trains on a GPU only; on the CPU use 'fp32' or 'bf16'.")
    fabric = Fabric(
        accelerator=device.type,
        devices=config.devices,
        num_nodes=config.nodes,
        precision=PRECISIONS[precision],
        # not every loss reaches every weight: CLIP trained on sketches leaves its text tower alone
        strategy="ddp_find_unused_parameters_true" if config.devices * config.nodes > 1 else "auto",
    )
    if restarted():  # the earlier processes have left their addresses, by which the others would look for the new ones
        store, rank, world = next(distributed.rendezvous("env://"))
        store = distributed.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    fabric.launch()
    return fabric


@contextmanager
def shared_statistics(model: nn.Module) -> Iterator[None]:
    """Lets batch normalisation see the features of all processes, as it would in one.

    torch's SyncBatchNorm does it for GPUs only. The features here are a few vectors a picture.
    """

    def of_all(norm: nn.Module, args: tuple):
        return (gather(args[0]),) if norm.training else None

    def own(norm: nn.Module, args: tuple, output: torch.Tensor):
        return output.chunk(distributed.get_world_size())[distributed.get_rank()] if norm.training else None

    hooks = [
        hook
        for module in model.modules()
        if isinstance(module, nn.BatchNorm1d)
        for hook in (module.register_forward_pre_hook(of_all), module.register_forward_hook(own))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# -- started here --------------------------------------------------------------------------------------------------


def rows_of(train: Callable[..., Iterator[dict]], model: Method, job: dict[str, Any]) -> Iterator[dict]:
    """The rows of `train(model, **job)`, a function of a module, run by `devices` new processes.

    They are programs of their own, not forks, so CUDA may be in use here and a script needs no `__main__` guard. They
    end with the generator, with this process, and with one another: an error in one of them, or its death, ends all
    and is raised here as a ReidError. The model stays on the CPU and as it was; theirs is made by its class anew, as
    `load_model` does, since not every model of transformers survives pickling. Raises ReidError for a class that they
    cannot import.
    """
    world = job["config"].devices
    packed = io.BytesIO()
    try:
        if type(model).__module__ == "__main__":
            raise pickle.PicklingError(type(model).__name__)
        torch.save((train, _recipe(model.cpu()), job), packed)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ReidError(
            f"devices={world} needs a model, batches and evaluate that other processes can import; one of them is "
            f"defined in the notebook or script itself ({error})."
        ) from error
    # The processes meet at this store; they find it in the way in which those of torchrun find theirs.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    jobs, (here, there) = spawn.Queue(), spawn.Pipe(duplex=False)
    with _nothing_in_main():
        running = multiprocessing.start_processes(_work, (world, store.port, jobs, there), world, join=False)
    end = [process.kill for process in running.processes]
    try:
        for kill in end:
            atexit.register(kill)  # Python waits for processes before it forgets generators
        for _ in end:
            jobs.put(packed.getbuffer().tobytes())
        there.close()
        alive = running.processes
        while alive:
            connection.wait([here, *(process.sentinel for process in alive)])
            alive = [process for process in alive if process.is_alive()]
            yield from _received(here)
            codes = [process.exitcode for process in running.processes]
            if any(codes):
                raise _first_cause(codes, running.error_files)
    finally:
        for kill in end:
            kill()
            atexit.unregister(kill)
        for process in running.processes:
            process.join()
        jobs.cancel_join_thread()
        jobs.close()


def _recipe(model: Method) -> dict:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    made_of = {"kind": type(model), "config": model.config, "num_classes": model.num_classes, "towers": model.made_of}
    return made_of | {"state": model.state_dict(), "frozen": frozen}


def _rebuilt(
    kind: type[Method],
    config: Config,
    num_classes: int,
    towers: dict,
    state: dict[str, torch.Tensor],
    frozen: list[str],
) -> Method:
    """The model of a `_recipe`."""
    model = kind(config, num_classes, **{name: from_spec(spec) for name, spec in towers.items()})
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


@contextmanager
def _nothing_in_main() -> Iterator[None]:
    """Keeps new processes from running the script that starts them once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _received(rows: connection.Connection) -> Iterator[dict]:
    with suppress(EOFError):  # all senders have ended
        while rows.poll():
            yield rows.recv()


def _first_cause(codes: list[int | None], files: list[str]) -> ReidError:
    """One error of many: a death explains the connections that the others lost, else what was raised first.

    codes: with which each process has ended, None for those still there. files: where torch keeps what it raised.
    """
    raised = [(Path(file), rank) for rank, file in enumerate(files) if Path(file).is_file()]
    rank, code = next(((rank, code) for rank, code in enumerate(codes) if code and (code < 0 or not raised)), (0, 0))
    if code:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        of = f"Training process {rank} of {len(codes)}"
        return ReidError(f"{of} {how}; the same call goes on from the last checkpoint.")
    first, rank = min(raised, key=lambda file: file[0].stat().st_mtime_ns)
    trace = pickle.loads(first.read_bytes())  # a string
    kind, message = re.findall(r"^([\w.]+)(?:: (.*))?$", trace, re.MULTILINE)[-1]
    if kind.startswith("reidlib.errors."):
        return getattr(errors, kind.rpartition(".")[2])(message)
    cause = ReidError(f"Training process {rank} of {len(codes)} failed with {kind}: {message}")
    cause.add_note(trace)
    return cause


def _work(rank: int, world: int, port: int, jobs, rows: connection.Connection) -> None:
    """One of the processes."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    logging.disable(logging.INFO)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "fit",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    train, recipe, job = torch.load(io.BytesIO(jobs.get()), weights_only=False)  # from the starter, through no file
    for row in train(_rebuilt(**recipe), **job):
        if rank == 0:
            rows.send(row)
    distributed.destroy_process_group()


def _end_with_starter() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
