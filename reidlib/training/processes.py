"""The processes of a training on several devices: started here unless torchrun did, watched, and ended together."""

import io
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, distributed

from reidlib import errors
from reidlib.backbones import from_spec
from reidlib.config import Config
from reidlib.devices import pick_device
from reidlib.errors import ConfigError, ReidError
from reidlib.methods.base import Method

GRACE = 2.0  # seconds that the other processes have to say what went wrong with them when one has failed


def must_start(config: Config) -> bool:
    """Whether a training needs processes that nobody has started yet.

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


def rows_of(folder: Path, model: Method, config: Config, **job) -> Iterator[dict]:
    """The rows of `fit(model=model, config=config, folder=folder, **job)`, run by `config.devices` new processes.

    They are programs of their own, not forks, so CUDA may be in use here and a script needs no `__main__` guard. They
    end with the generator, with this process, and with one another: an error in one of them, or its death, ends all
    and is raised here as a ReidError. The model stays on the CPU and as it was; theirs is made by its class anew, as
    `load_model` does, since not every model of transformers survives pickling. Raises ReidError for a class that they
    cannot import.
    """
    if type(model).__module__ == "__main__":
        raise ReidError(
            f"devices={config.devices} needs {type(model).__name__} in a module that other processes can import; it is "
            "defined in the notebook or script itself."
        )
    packed = io.BytesIO()
    torch.save((_recipe(model.cpu()), {"folder": folder, "config": config, **job}), packed)
    # The processes meet at this store; they find it in the way in which those of torchrun find theirs.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    running = [_start(folder, rank, config.devices, store.port) for rank in range(config.devices)]
    try:
        for process in running:
            with suppress(BrokenPipeError):  # it has ended already; how, its status will say
                process.stdin.write(len(packed.getbuffer()).to_bytes(8))
                process.stdin.write(packed.getbuffer())
                process.stdin.flush()
        del packed
        yield from _listen(running)
    finally:
        for process in running:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()


def _recipe(model: Method) -> dict:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    made_of = {"kind": type(model), "config": model.config, "num_classes": model.num_classes, "towers": model.made_of}
    return made_of | {"state": model.state_dict(), "frozen": frozen}


def _made(
    kind: type[Method], config: Config, num_classes: int, towers: dict, state: dict[str, Tensor], frozen: list[str]
) -> Method:
    """The model of a `_recipe`."""
    model = kind(config, num_classes, **{name: from_spec(spec) for name, spec in towers.items()})
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def _start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen:
    """A process as torchrun would start it; its input is the job, then nothing, and it ends when its input does."""
    threads = max(1, (os.cpu_count() or 1) // world)
    like_torchrun = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "fit", "TORCHELASTIC_USE_AGENT_STORE": True,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import work; work()", str(folder)],  # the folder is for `ps` alone
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        | os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        | {name: str(value) for name, value in like_torchrun.items()},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
    )


def _listen(running: list[subprocess.Popen]) -> Iterator[dict]:
    """The rows that the first process sends, until all have ended well; else the ReidError of the one that did not."""
    events: queue.SimpleQueue = queue.SimpleQueue()

    def read(rank: int, process: subprocess.Popen) -> None:
        with process.stdout:
            for line in process.stdout:
                events.put((rank, json.loads(line)))
        events.put((rank, {"ended": process.wait()}))

    for rank, process in enumerate(running):
        threading.Thread(target=read, args=(rank, process), daemon=True).start()
    left = len(running)
    while left:
        rank, event = events.get()
        if "row" in event:
            yield event["row"]
        elif event.get("ended") == 0:
            left -= 1
        else:
            failed = [(rank, event)]
            with suppress(queue.Empty):
                while True:
                    failed.append(events.get(timeout=GRACE))
            raise _first_cause(failed, len(running))


def _first_cause(failed: list[tuple[int, dict]], world: int) -> ReidError:
    """One error of many: a death explains the connections that the others lost, and a ReidError knows best."""

    def weight(event: dict) -> int:
        return 0 if event.get("ended", 0) < 0 else 1 if hasattr(errors, event.get("kind", "")) else 2

    rank, event = min(failed, key=lambda each: weight(each[1]))
    if "kind" not in event:
        ended = event["ended"]
        how = f"was killed by {signal.Signals(-ended).name}" if ended < 0 else f"ended with status {ended}"
        return ReidError(f"Training process {rank} of {world} {how}; the same call goes on from the last checkpoint.")
    if weight(event) == 1:
        return getattr(errors, event["kind"])(event["message"])
    error = ReidError(f"Training process {rank} of {world} failed with {event['kind']}: {event['message']}")
    error.add_note(event["trace"])
    return error


def work() -> None:
    """One of the processes: runs the job and tells the one that started it, a line of JSON each."""
    from reidlib.training import fit

    packed = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8)))
    threading.Thread(target=_end_with_starter, daemon=True).start()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated")  # Fabric's affair
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is not for the starter

    def tell(**event) -> None:
        lines.write(json.dumps(event) + "\n")
        lines.flush()

    try:
        recipe, job = torch.load(io.BytesIO(packed), weights_only=False)  # from the starter, through no file
        del packed
        for row in fit(_made(**recipe), **job):
            if os.environ["RANK"] == "0":
                tell(row=row)
    except Exception as error:
        tell(kind=type(error).__name__, message=" ".join(str(error).split()), trace=traceback.format_exc())
        sys.exit(1)
    distributed.destroy_process_group()


def _end_with_starter() -> None:
    os.read(0, 1)  # nothing more is ever sent: it returns when the starter is gone, however it went
    os._exit(1)
