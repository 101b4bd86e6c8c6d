"""DiaNA on two processes with half a batch each does what one process does with the whole batch."""

import socket

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

from reidlib.methods.diana import DiaNA, DianaConfig

PROCESSES, BATCH = 2, 6


def model() -> DiaNA:
    torch.manual_seed(0)
    # Attributes reduced by their maximum, so that the (N, M, K) path is gathered too.
    config = DianaConfig(towers="transformers", embed_dim=64, num_queries=3, refiner_layers=1, reduction="lsp_max")
    return DiaNA(config).eval()  # no random rounds, no masking


def batch(diana: DiaNA) -> dict[str, Tensor]:
    colours = ("red", "blue", "grey", "pink", "tan", "teal")
    talks = [[("What top?", f"{colour} coat")] * (1 + i % 3) for i, colour in enumerate(colours)]
    images = torch.randn(BATCH, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    return {
        "images": images,
        "dialogue_ids": diana.tokenize_dialogues(talks),
        "pids": torch.tensor([0, 1, 2, 0, 3, 1]),  # positives sit on both processes
    }


def losses_and_gradients(diana: DiaNA, part: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = diana.losses(part)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in diana.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def gather(tensor: Tensor) -> Tensor:
    gathered = torch.cat(all_gather(tensor))
    if gathered.requires_grad:  # gloo mixes up the gradients of several processes when they come transposed
        gathered.register_hook(Tensor.contiguous)
    return gathered


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    diana = model()
    diana.gather = gather
    half = {name: value.chunk(PROCESSES)[rank] for name, value in batch(diana).items()}
    losses, gradients = losses_and_gradients(diana, half)
    for gradient in gradients.values():  # what distributed data parallel does: the mean over processes
        distributed.all_reduce(gradient)
        gradient /= PROCESSES
    torch.save((losses, gradients), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=PROCESSES)
    alone = model()
    losses, gradients = losses_and_gradients(alone, batch(alone))
    for rank in range(PROCESSES):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(theirs[0], losses, atol=1e-5, rtol=1e-5)
        assert theirs[1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (theirs[1][name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6, name
