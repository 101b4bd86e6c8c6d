"""What the workbook costs: training steps, memory, evaluation, search, reading and encoding pictures: lists of rows.

Every speed is a comparison: the things compared take turns in one process, and the median over the turns counts.
Models have random weights, so nothing is fetched; time and memory do not depend on the values.
"""

import itertools
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from reidlib import methods
from reidlib.config import Config
from reidlib.data import PersonData, load
from reidlib.data.augment import BatchAugment
from reidlib.data.batches import data_pixels
from reidlib.data.images import open_image
from reidlib.devices import autocast, pick_device
from reidlib.evaluation import Encoder, rank
from reidlib.losses import both_ways, itc
from reidlib.methods.base import Method
from reidlib.query import Query
from reidlib.retrieval import GalleryIndex, cluster
from reidlib.retrieval.store import Store, connect, create

METHODS = ("clip", "cfine", "cffa", "interactreid-1", "interactreid", "diana")
TIMED = (*METHODS, "omni")  # in steps; what it computes depends on the parts a batch holds, and is not counted
GOAL = 1.15  # a step should take at most so many times the bare one
SCALE = 50.0  # inverse temperature of the bare step
RANDOM: dict[str, dict[str, Any]] = {
    "clip": {"backbone": "ViT-B-16-quickgelu"},
    "cfine": {"backbone": "ViT-B-16-quickgelu", "text_encoder": "base-random"},
    "cffa": {"backbone": "ViT-B-16-quickgelu"},
    "interactreid-1": {"backbone": "ViT-B-16-quickgelu"},
    "interactreid": {"backbone": "ViT-B-16-quickgelu"},
    "omni": {"backbone": "ViT-B-16-quickgelu"},
    "diana": {"image_tower": "swinv2-base-random", "text_tower": "llama-3.2-1b-random", "drop_path": 0.0},
}
WHOLE = {"diana": {"random_rounds": False}}  # both steps read whole dialogues, which training cuts off at random
CAPTION = (
    "A woman with long black hair wears a red coat over a white shirt, tight blue jeans and brown boots. "
    "She carries a black leather bag on her left shoulder."
)
DIALOGUE = [
    ("Is the person a man or a woman?", "It is a woman of about thirty with long black hair."),
    ("What does the person wear on the upper body?", "She wears a red coat over a white shirt."),
    ("What about the trousers and the shoes?", "She has tight blue jeans and brown boots."),
    ("Does the person carry anything?", "She carries a black leather bag on her left shoulder."),
    ("Is there anything else that stands out?", "No, but she may be on the phone and walks fast."),
]
LONG = 8  # times the caption or dialogue, which fills every text length
QUERIES, PICTURES, PEOPLE = 6_156, 3_074, 1_000  # the test split of CUHK-PEDES
WIDTH = 512  # of the embeddings that are ranked
PER_PERSON, SPREAD = 10, 0.8  # pictures of a person, and how far they lie from their middle, in its lengths
ROWS = 65_536  # embeddings made at a time


# -- the machine and the clock


def machine() -> dict[str, Any]:
    """The processor, GPU, threads and versions that a measurement holds for."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def alternate(runs: Mapping[str, Callable[[], Any]], repeats: int = 7, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each of `repeats` runs, which take turns, A B A B ...: a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            begun = _now()
            run()
            if turn >= warm_up:
                seconds[name].append(_now() - begun)
    return seconds


def paired_ratio(seconds: Mapping[str, list[float]], a: str, b: str) -> float:
    """The median over the turns of a's time over b's in the same turn."""
    return median(first / second for first, second in zip(seconds[a], seconds[b], strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that gives no name
        return platform.processor() or platform.machine()


# -- training steps


def steps(preset: str = "toy", names: Sequence[str] = TIMED, repeats: int = 7, batch_size: int = 0) -> list[dict]:
    """Time of a step (forward, losses, backward, optimiser) and of the bare step, side by side, a row a method.

    batch_size: 0 takes what one device has of the preset's. The peaks are torch's own count on a GPU; on the CPU they
    are left to `memory`, as the memory of a process says little. Raises ConfigError for an unknown method or preset.
    """
    rows = []
    for name in names:
        model = build(name, preset).to(pick_device()).train()
        made = batch(model, batch_size or share_of_batch(model))
        size, optimizer = len(made["pids"]), optimizer_of(model)
        runs = {
            "step": lambda: train_step(model, optimizer, lambda: sum(model.losses(made).values())),  # noqa: B023
            "bare": lambda: train_step(model, optimizer, lambda: bare_loss(model, made)),  # noqa: B023
        }
        seconds = alternate(runs, repeats)
        step, bare = median(seconds["step"]), median(seconds["bare"])
        row = {"method": name, "preset": preset, "batch": size, "step_ms": 1e3 * step, "bare_ms": 1e3 * bare}
        row |= {"ratio": paired_ratio(seconds, "step", "bare"), "images_per_second": size / step}
        if model.device.type == "cuda":
            row |= {f"{run}_peak_mb": cuda_peak(runs[run]) / 1e6 for run in runs}
        rows.append(row)
    return rows


def parts(preset: str = "toy", names: Sequence[str] = TIMED, repeats: int = 5, batch_size: int = 0) -> list[dict]:
    """Where the time of a step goes, and of the bare step at the same batch and text length: a row a method and step.

    Milliseconds, medians: the forward pass of each part of the model by its name (`image tower`, `text tower`, then
    the method's own), `losses` (all else of the forward pass), `backward`, `optimiser`. A part inside another counts
    for the outer one.
    """
    rows = []
    for name in names:
        model = build(name, preset).to(pick_device()).train()
        made = batch(model, batch_size or share_of_batch(model))
        length = max((made[key].shape[1] for key in ("text", "turns") if key in made), default=0)
        losses = {"step": lambda: sum(model.losses(made).values()), "bare": lambda: bare_loss(model, made)}  # noqa: B023
        clocks: dict[str, list[dict[str, float]]] = {run: [] for run in losses}
        optimizer = optimizer_of(model)
        for _ in range(1 + repeats):
            for run, loss in losses.items():
                clocks[run].append(_timed_parts(model, optimizer, loss))
        for run, found in clocks.items():
            row = {"method": name, "preset": preset, "batch": len(made["pids"]), "text_length": length, "run": run}
            rows.append(row | {part: 1e3 * median(turn[part] for turn in found[1:]) for part in found[0]})
    return rows


def _timed_parts(model: Method, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Seconds of one step by part."""
    spent: dict[str, float] = defaultdict(float)
    entered: list[float] = []

    def leave(part: str) -> None:
        begun = entered.pop()
        if not entered:
            spent[part] += _now() - begun

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_: entered.append(_now())))
        hooks.append(module.register_forward_hook(lambda *_, path=path: leave(_part(path))))
    begun = _now()
    with autocast(model.device, model.config.precision):
        total = loss()
    spent["losses"] = _now() - begun - sum(spent.values())
    for hook in hooks:  # what is computed again in the backward pass belongs to it
        hook.remove()
    begun = _now()
    total.backward()
    spent["backward"], begun = _now() - begun, _now()
    optimizer.step()
    optimizer.zero_grad()
    return spent | {"optimiser": _now() - begun}


def _part(path: str) -> str:
    """What the module at this path of a model belongs to: a tower, or the method's own part by its name."""
    first = path.split(".")[0]
    if any(word in path for word in ("visual", "vision", "swin")):
        return "image tower"
    return "text tower" if first in ("clip", "bert", "towers", "text_projection") else first.replace("_", " ")


def whole_query(preset: str = "toy", turns: int = 10, marks: int = 5, repeats: int = 20) -> list[dict]:
    """Milliseconds that Omni takes to embed one query of a text, `turns` turns, a sketch and `marks` liked pictures,
    beside its towers' own passes over the same words and sketch: one row; `reader_ms` is what is left."""
    model = build("omni", preset).eval()
    sketch = torch.randint(256, (3, *model.image_size), dtype=torch.uint8)
    asked = list(itertools.islice(itertools.cycle(DIALOGUE), turns))
    query = Query(text=CAPTION, turns=asked, sketch=sketch, liked=torch.randn(marks, model.clip.embed_dim))
    ids, drawn = [model.tokenize([CAPTION]), model.tokenize_turns(asked)], model.pixels([sketch])
    runs = {
        "query": lambda: model.embed([query]),
        "text": lambda: list(map(model.embed_text, ids)),
        "sketch": lambda: model.embed_image(drawn),
    }
    with torch.inference_mode():
        taken = {name: 1e3 * median(seconds) for name, seconds in alternate(runs, repeats).items()}
    row = {"preset": preset, "turns": turns, "marks": marks} | {f"{name}_ms": value for name, value in taken.items()}
    return [row | {"reader_ms": taken["query"] - taken["text"] - taken["sketch"]}]


def arithmetic(preset: str = "paper", names: Sequence[str] = METHODS, batch_size: int = 0) -> list[dict]:
    """Floating-point operations of forward and backward pass in 10^12, and of the bare step: exact, and needs no GPU.

    It counts matrix products, convolutions and attention; a real step also spends time on all that is small.
    """
    rows = []
    for name in names:
        with Unfilled():
            model = without_contents(build(name, preset)).train()
        made = batch(model, batch_size or share_of_batch(model))
        step = _operations(lambda: sum(model.losses(made).values())) / 1e12  # noqa: B023
        bare = _operations(lambda: bare_loss(model, made)) / 1e12  # noqa: B023
        row = {"method": name, "preset": preset, "batch": len(made["pids"]), "step": step, "bare": bare}
        rows.append(row | {"ratio": step / bare})
    return rows


def _operations(loss: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, CountedMasks():
        loss().backward()
    return counter.get_total_flops()


def build(name: str, preset: str, **settings: Any) -> Method:
    """A method at a preset with random weights where the preset would fetch some. settings: fields of its config."""
    overrides = (RANDOM.get(name, {}) if preset == "paper" else {}) | WHOLE.get(name, {})
    config: Config = methods.config_class(name).preset(preset, **overrides | settings)
    torch.manual_seed(0)
    return methods.create(name, config.as_dict(), num_classes=1_000)


def share_of_batch(model: Method) -> int:
    """What one device sees of a batch of the preset."""
    return model.config.batch_size // (model.config.devices * model.config.nodes)


def batch(model: Method, size: int, times: int = 1) -> dict[str, Any]:
    """A training batch of noise and of one caption (or dialogue) `times` over, every second picture of a person."""
    pictures = torch.randn(2, size, 3, *model.image_size)
    rows = torch.arange(size)
    made = {"images": pictures[0], "pids": rows // 2, "image_ids": rows, "progress": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts are meant to be as long as they may be
        if "text" in model.trains_on:
            made["text"] = model.tokenize([" ".join([CAPTION] * times)] * size)
        if "turns" in model.trains_on:
            asked = DIALOGUE[: model.config.most_turns] if model.mixes else [DIALOGUE * times] * size
            made["turns"] = model.tokenize_turns(asked)
    if "sketch" in model.trains_on:
        made["sketch"] = pictures[1]
    if model.mixes:  # each turn by itself, and all parts are there
        made |= {"turns": made["turns"].expand(size, -1, -1), "photo": pictures[0].flip(0)}
        made["has_turns"] = torch.ones(made["turns"].shape[:2], dtype=torch.bool)
        made |= {f"has_{part}": torch.ones(size, dtype=torch.bool) for part in ("text", "sketch", "photo")}
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in made.items()}


def bare_loss(model: Method, made: dict[str, Any]) -> Tensor:
    """Symmetric ITC on the pooled features of the method's own towers, fed with what the method feeds them.

    InteractReID shows its image tower sketches as well, and in stage 2 the frozen text tower reads one prompt, whose
    gradient it passes on as the pseudo-word needs it; there the bare step does the same without a mapping.
    """
    towers = {"cfine": _cfine, "diana": _diana, "interactreid-1": _interactreid, "interactreid": _interactreid}
    towers["omni"] = _omni
    features = [normalize(view.float(), dim=-1) for view in towers.get(model.name, _clip)(model, made)]
    targets = torch.eye(len(features[0]), device=model.device)
    return sum(both_ways(itc, SCALE * view @ features[0].T, targets) for view in features[1:])


def _clip(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    ids = made["text"]
    if getattr(model.config, "trim", True):
        return model.clip.encode_image(made["images"]), model.clip.encode_text(ids)
    tokens = model.clip.text_tokens(ids).tokens  # padding and all, as the method has it
    return model.clip.encode_image(made["images"]), tokens[torch.arange(len(ids)), ids.argmax(dim=1)]


def _cfine(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    ids, bert = made["text"], model.bert
    ids = ids[:, : int((ids != bert.pad).sum(dim=1).max())]
    if model.project:  # CLIP's own text tower
        return model.clip.encode_image(made["images"]), bert(ids).tokens[:, 0]
    words = bert.model(input_ids=ids, attention_mask=(ids != bert.pad).long()).last_hidden_state
    return model.clip.encode_image(made["images"]), words[:, 0]


def _diana(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    pictures = model.encode_image(made["images"], refine=False)
    return pictures.pooled, model.encode_text(made["turns"], refine=False).pooled


def _interactreid(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    photos, sketches = model.clip.encode_image(torch.cat([made["images"], made["sketch"]])).chunk(2)
    if "text" in made:
        return photos, sketches, model.clip.encode_text(made["text"])
    ids = model.prompt.expand(len(photos), -1)
    embedded = model.clip.embed_tokens(ids).detach().requires_grad_()
    return photos, sketches, model.clip.encode_text(ids, embedded=embedded)


def _omni(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    turns = model.embed_text(made["turns"].flatten(0, 1)).unflatten(0, made["turns"].shape[:2]).mean(dim=1)
    with torch.no_grad():
        photo = model.embed_image(made["photo"])
    pictures = map(model.embed_image, (made["images"], made["sketch"]))
    return *pictures, photo, model.embed_text(made["text"]), turns


def train_step(model: Method, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    with autocast(model.device, model.config.precision):
        total = loss()
    total.backward()
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(model: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([group for group in model.parameter_groups(model.config) if group["params"]], fused=True)


def cuda_peak(run: Callable[[], None]) -> int:
    """The most bytes that torch had in use on the GPU during `run`."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


# -- memory of a step, before there is a GPU


def memory(
    preset: str = "paper", names: Sequence[str] = METHODS, batch_sizes: Sequence[int] = (16, 32, 64, 128)
) -> list[dict]:
    """An estimate of the memory of a training step on a GPU in GB (10^9 bytes): a row a method, setting and batch size.

    weights, gradients and the optimiser's two states are in float32; `kept` is what the forward pass keeps for the
    backward pass, `peak` the most that is alive at a time, all of these included. Texts are as long as the preset
    allows. Left out: CUDA itself (about half a GB), workspaces of its libraries, and what its allocator holds in
    reserve, which together ask for a tenth more and then some. Where there is a GPU, `measured` is what torch counted.
    """
    rows = []
    for name in names:
        variants: list[dict[str, Any]] = [{"checkpoint_activations": on} for on in (False, True)]
        if preset == "paper":
            variants += [variant | {"lora": 16} for variant in variants]
        for settings in variants:
            with Unfilled():
                model = without_contents(build(name, preset, **settings))
            real = build(name, preset, **settings).to("cuda") if torch.cuda.is_available() else None
            for size in batch_sizes:
                row = {"method": name, "preset": preset, "batch": size, **settings}
                row |= {part: value / 1e9 for part, value in step_memory(model, batch(model, size, LONG)).items()}
                rows.append(row if real is None else row | {"measured": _measured(real, size)})
    return rows


def step_memory(model: Method, made: dict[str, Any]) -> dict[str, int]:
    """Bytes of one training step on the batch `made`, in the parts that `memory` explains."""
    if model.config.checkpoint_activations:
        model.checkpoint_activations()
    weights = _bytes([*model.parameters(), *model.buffers()])
    gradients = _bytes(p for p in model.parameters() if p.requires_grad)
    half = model.config.precision != "fp32"
    with LiveMemory() as live, CountedMasks():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # as a GPU would
            total = sum(model.train().losses(made).values())
        kept = live.now
        total.backward()
    model.zero_grad()
    found = {"weights": weights, "gradients": gradients, "optimiser": 2 * gradients, "kept": kept}
    constant = weights + 2 * gradients + _bytes(value for value in made.values() if isinstance(value, Tensor))
    return found | {"peak": constant + live.peak}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measured(model: Method, size: int) -> float:
    """GB that a step took by torch's own count; NaN where there was too little."""
    made, optimizer = batch(model, size, LONG), optimizer_of(model)
    try:
        train_step(model, optimizer, lambda: sum(model.losses(made).values()))  # makes the optimiser's states
        return cuda_peak(lambda: train_step(model, optimizer, lambda: sum(model.losses(made).values()))) / 1e9
    except torch.OutOfMemoryError:
        return float("nan")


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is open and still alive: `now`, and `peak`, their most.

    It counts storages, so a view costs nothing and what is freed is subtracted. It works alike on any device and on
    tensors without contents. Workspaces inside an operation are not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_):
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def without_contents(model: nn.Module) -> nn.Module:
    """The model, in place, with floating-point weights that have shapes alone; what it computes has none either.

    A step of a billion weights can then be counted on any machine. Whole numbers stay as they are, so that the model
    can still count the words of a caption.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    tensors[name] = mode.from_tensor(tensor)
    return model


class CountedMasks(TorchDispatchMode):
    """Chooses by the row numbers of a mask in place of the mask: how many they are is then known without contents."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index.Tensor:
            chosen = []
            for index in args[1]:
                mask = index is not None and index.dtype is torch.bool
                chosen += index.nonzero().unbind(1) if mask else [index]
            args = (args[0], chosen)
        return func(*args, **(kwargs or {}))


class Unfilled(TorchDispatchMode):
    """Leaves out the drawing of random weights: a billion take minutes, and memory that is not touched is free."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0]
        if func is torch.ops.aten.any.default:  # torch draws a truncated normal until no value lies outside: for ever
            return torch.tensor(False)
        return func(*args, **(kwargs or {}))


# -- evaluation and search


def evaluation(
    galleries: Sequence[int] = (PICTURES, 10_000, 30_000, 100_000), queries: int = QUERIES, repeats: int = 1
) -> list[dict]:
    """Time to rank `queries` against each gallery and to take the metrics, and the peak of the tensors made for it.

    The embeddings are random, which changes nothing in what is computed; pictures beyond those of CUHK-PEDES show
    people whom no query asks for. `extra_mb` counts the memory beside the embeddings, on the CPU and on a GPU alike.
    """
    device, generator = pick_device(), torch.Generator().manual_seed(0)
    asked = normalize(torch.randn(queries, WIDTH, generator=generator), dim=1).to(device)
    query_pids = torch.randint(PEOPLE, (queries,), generator=generator).to(device)
    rows = []
    for pictures in galleries:
        gallery = normalize(torch.randn(pictures, WIDTH, generator=generator), dim=1).to(device)
        pids = torch.arange(pictures, device=device)
        pids = torch.where(pids < PICTURES, pids % PEOPLE, pids)

        def run(gallery=gallery, pids=pids):
            return rank(asked, gallery, query_pids, pids).summary()

        with LiveMemory() as live:
            run()  # which warms up too
        seconds = median(alternate({"run": run}, repeats, warm_up=0)["run"])
        row = {"queries": queries, "pictures": pictures, "seconds": seconds, "extra_mb": live.peak / 1e6}
        rows.append(row | {"billion_pairs_per_minute": 60e-9 * queries * pictures / seconds})
    return rows


def searches(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000), width: int = WIDTH, queries: int = 50, k: int = 10
) -> list[dict]:
    """Milliseconds a query, one at a time, for each size of a gallery, a row each.

    `read_ms` is the time to go through the embeddings once (their largest value), `ratio` that of the exact search to
    it. Where LanceDB is installed, the same gallery in a store with a quantised index: `store_ms`, `recall`, the share
    of the exact k best that it finds too, the seconds that loading and indexing took, `load_s` and `index_s`, what it
    takes on the disk, `disk_mb`, and the memory of a process that connects and searches, `search_mb`: the engine
    runs inside of the client, so it is that of both (Linux only).
    Embeddings lie in clusters, as pictures of people do: among unrelated ones nothing could be left out of a search.
    """
    rows = []
    for size in sizes:
        gallery, asked = clustered(size, width, queries)
        exact = GalleryIndex(gallery, [{}] * size)
        runs = {"exact": _taking_turns(exact, asked, k), "read": torch.from_numpy(gallery).max}
        with TemporaryDirectory() as folder:
            store, took = _store(folder, gallery) if find_spec("lancedb") else (None, {})
            if store is not None:
                runs["store"] = _taking_turns(store, asked, k)
            seconds = alternate(runs, repeats=queries)
            row = {"pictures": size, "width": width, **{f"{name}_ms": 1e3 * median(seconds[name]) for name in runs}}
            row["ratio"] = paired_ratio(seconds, "exact", "read")
            if store is not None:
                row |= {"recall": store.recall(asked, k), **took, "disk_mb": _size(Path(folder)) / 1e6}
                row |= _memory_of_searching(folder, asked, k)
        rows.append(row)
    return rows


def _store(folder: str, gallery: np.ndarray) -> tuple[Store, dict[str, float]]:
    """The gallery in a vector store, indexed; and what that took."""
    start = time.perf_counter()
    store = create(folder, "gallery", gallery, [{"image": f"{row}.jpg"} for row in range(len(gallery))])
    loaded = time.perf_counter()
    store.build_index("IVF_PQ", num_sub_vectors=gallery.shape[1] // 4)
    return store, {"load_s": loaded - start, "index_s": time.perf_counter() - loaded}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _memory_of_searching(folder: str, queries: Tensor, k: int) -> dict[str, float]:
    """Measured in a new process, as this one holds the gallery."""
    if not Path("/proc/self/status").exists():
        return {}
    code = f"from reidlib import benchmarks; benchmarks.search_alone({folder!r}, {queries.shape[1]}, {k})"
    given = queries.numpy().tobytes()
    found = subprocess.run([sys.executable, "-c", code], input=given, stdout=subprocess.PIPE, check=True).stdout
    return {"search_mb": int(found) / 1e6}


def search_alone(folder: str, width: int, k: int) -> None:
    """Prints the bytes by which this process grows while it searches a store for the queries that it is given."""
    import lancedb  # noqa: F401 - what importing takes is not what is measured

    queries = torch.from_numpy(np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(-1, width).copy())
    before, store = _own_memory(), connect(folder)
    for query in queries:
        store.search(query[None], k)
    print(_own_memory() - before)


def _own_memory() -> int:
    """Bytes of memory that are this process's alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def _taking_turns(index: GalleryIndex | Store, queries: Tensor, k: int) -> Callable[[], object]:
    """Searches for the next query each time it is called, over and over."""
    order = itertools.cycle(range(len(queries)))
    return lambda: index.search(queries[[next(order)]], k)


def clustered(size: int, width: int, queries: int) -> tuple[np.ndarray, Tensor]:
    """Embeddings (size, width) of length 1 around random people, and queries (queries, width) around some of them."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((max(1, size // PER_PERSON), width), dtype=np.float32)
    people /= np.linalg.norm(people, axis=1, keepdims=True)

    def around(rows: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal((len(rows), width), dtype=np.float32) * np.float32(SPREAD / width**0.5)
        near = people[rows] + noise
        return near / np.linalg.norm(near, axis=1, keepdims=True)

    starts = range(0, size, ROWS)
    gallery = np.concatenate([around(np.arange(start, min(start + ROWS, size)) % len(people)) for start in starts])
    return gallery, torch.from_numpy(around(rng.integers(len(people), size=queries)))


# -- encoding, and what a large gallery costs


def encoding(
    preset: str = "toy", count: int = 4_096, workers: Sequence[int] = (0, 1, 2, 4), model: Callable[[], Method] = None
) -> list[dict]:
    """Pictures a second that `encode_pictures` takes from JPEG files to Parquet files, and what the bare model takes.

    A row for the bare model, fed with decoded pictures from memory, then one for each number of workers, 0 being this
    process without Ray. The speed is that between the first file of every worker and the last file of all, as a long
    job has it; `start_s` is what passes before. Without pyarrow, which writes the files, there is the bare model alone.
    model: a function that makes it; CLIP's of the preset by default.
    """
    make = model or partial(build, "clip", preset)
    bare, rng = make().to(pick_device()).eval(), np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        source = Path(folder, "pictures")
        source.mkdir()
        for number in range(count):
            noise = Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8))
            noise.resize((128, 256), Image.Resampling.BICUBIC).save(source / f"{number:06}.jpg", quality=90)
        names = [source / f"{number:06}.jpg" for number in range(min(count, cluster.ROWS))]
        pixels, encoder = [bare.resized(name) for name in names], Encoder(bare, batch_size=64)
        seconds = median(alternate({"bare": lambda: encoder.images(pixels)}, repeats=3, warm_up=1)["bare"])
        rows = [{"way": "bare model", "pictures_per_second": len(pixels) / seconds, "start_s": 0.0}]
        for number in workers if find_spec("pyarrow") else ():
            if number and not find_spec("ray"):
                continue
            out, begun = Path(folder, f"out {number}"), time.time()
            cluster.encode_pictures(make, source, out, workers=number)
            written = sorted(file.stat().st_mtime for file in out.glob("*.parquet"))
            first = written[max(1, number) - 1]  # by then each worker has its model, or nearly so
            speed = cluster.ROWS * (len(written) - max(1, number)) / (written[-1] - first)
            way = f"{number} worker{'s' * (number > 1)} on Ray" if number else "encode_pictures, this process"
            rows.append({"way": way, "pictures_per_second": speed, "start_s": first - begun})
    return [row | {"of_bare": row["pictures_per_second"] / rows[0]["pictures_per_second"]} for row in rows]


def operations_of_a_picture(preset: str = "paper", name: str = "clip") -> float:
    """Floating-point operations that encoding one picture takes, counted without weights."""
    with Unfilled():
        model = without_contents(build(name, preset)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.embed_image(torch.randn(1, 3, *model.image_size))
    return float(counter.get_total_flops())


def costs(pictures: int, speed: float, width: int = WIDTH, picture_bytes: int = 10_000) -> dict[str, float]:
    """What a gallery of N `pictures` costs where one GPU encodes v = `speed` pictures a second.

    - gpu_hours: N / (3600 v). On n workers so many times less time passes; the sum stays.
    - pictures_gb: N b, at b = `picture_bytes` a picture's file.
    - embeddings_gb: 4 N D, for D = `width` numbers of 4 bytes: the Parquet files, and the memory of an exact search.
    - store_gb: N (4 D + D / 4 + 100) on the disk: the vectors, a byte for four numbers of each in the index (IVF_PQ),
      and ids, names and their indexes; `searches` measures it.
    - index_gb: N D / 4, the part of it that a search through IVF_PQ keeps in memory once it has been everywhere.
    """
    return {
        "pictures": pictures,
        "gpu_hours": pictures / speed / 3600,
        "pictures_gb": pictures * picture_bytes / 1e9,
        "embeddings_gb": 4 * pictures * width / 1e9,
        "store_gb": pictures * (4 * width + width / 4 + 100) / 1e9,
        "index_gb": pictures * width / 4 / 1e9,
    }


# -- from files to batches


def pictures(data: PersonData, preset: str = "toy", name: str = "cfine", count: int = 256) -> list[dict]:
    """Pictures a second of three ways to make augmented batches for a method, the same `count` pictures in each.

    1. "files, one by one": what a plain torchvision loader does, in one process.
    2. "cache, one by one": decoded once before, augmented by the same torchvision transforms.
    3. "cache, batches": decoded once before, augmented together as training does it.

    Pictures are made up to the size of the method's towers. The file system's cache is warm in each.
    """
    model = build(name, preset)
    cache = data_pixels(data, model.preprocess)
    rows = [cache.index[path] for path in data.split("train")["image"][:count]]
    size = model.config.batch_size
    each, together = one_by_one(model), BatchAugment("irra", model.image_size, model.mean, model.std)
    resize = v2.Compose([v2.Resize(model.image_size, v2.InterpolationMode.BICUBIC), v2.PILToTensor()])
    ways: dict[str, Callable[[list[int]], Tensor]] = {
        "files, one by one": lambda part: torch.stack(
            [each(resize(open_image(data.root / cache.paths[i]))) for i in part]
        ),
        "cache, one by one": lambda part: torch.stack([each(image) for image in cache[part]]),
        "cache, batches": lambda part: together(cache[part]),
    }
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    runs = {way: (lambda make=make: [make(part) for part in batches]) for way, make in ways.items()}
    seconds = alternate(runs, repeats=3, warm_up=1)
    return [{"way": way, "preset": preset, "pictures_per_second": len(rows) / median(seconds[way])} for way in ways]


def one_by_one(model: Method) -> v2.Transform:
    """IRRA's augmentation of one uint8 picture (3, H, W) by torchvision's own transforms."""
    padding = max(2, round(10 * model.image_size[0] / 384))
    return v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.Pad(padding),
        v2.RandomCrop(model.image_size),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(model.mean, model.std),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.4), value=model.mean),
    ])  # fmt: skip


# -- towers that left the workbook


def onnx_towers(
    data: PersonData | None, preset: str = "toy", model: Method | None = None, repeats: int = 30
) -> list[dict]:
    """A CLIP's two towers on the CPU in torch, in ONNX, and in ONNX with int8 matrices: a row each.

    Milliseconds a picture and a query (the median, one at a time, taking turns), the files' size in MB, and with `data`
    what is found of its test captions. model: by default the toy CLIP as it comes, for "paper" a ViT-B/16 of random
    weights. int8 takes the weights of matrix products in 8 bits, and quantises what they are multiplied with as it
    comes. Needs the extra `onnx`.
    """
    from reidlib.evaluation import evaluate, tasks
    from reidlib.models import load_model

    if model is None:
        model = load_model("toy") if preset == "toy" else build("clip", preset)
    model = model.eval()
    with TemporaryDirectory() as folder, torch.inference_mode():
        ways: dict[str, Method] = {"torch": model} | _in_onnx(model, Path(folder))
        picture, query = torch.rand(1, 3, *model.image_size), model.tokenize([CAPTION])
        rows = []
        pictures = alternate({name: partial(way.embed_image, picture) for name, way in ways.items()}, repeats)
        queries = alternate({name: partial(way.embed_text, query) for name, way in ways.items()}, repeats)
        for name, way in ways.items():
            row = {"towers": name, "ms_picture": 1e3 * median(pictures[name])}
            row |= {"ms_query": 1e3 * median(queries[name]), "mb": way.megabytes if name != "torch" else None}
            if data is not None:
                found = evaluate(Encoder(way, data_pixels(data, model.preprocess)), tasks(data, "test", ["text"]))[0][0]
                row |= {metric: found[metric] for metric in ("R@1", "mAP")}
            rows.append(row)
    return rows


def _in_onnx(model: Method, folder: Path) -> dict[str, "OnnxTowers"]:
    from onnxruntime.quantization import quantize_dynamic

    from reidlib.export import write_onnx

    write_onnx(model, folder)
    (folder / "int8").mkdir()
    for part in ("image", "text"):
        logging.disable(logging.WARNING)  # it advises a preparation that torch's exporter has done
        whole, small = folder / f"{part}.onnx", folder / "int8" / f"{part}.onnx"
        quantize_dynamic(whole, small, op_types_to_quantize=["MatMul", "Gemm"])
        logging.disable(logging.NOTSET)
    return {"onnx": OnnxTowers(model, folder), "onnx int8": OnnxTowers(model, folder / "int8")}


class OnnxTowers(Method):
    """The towers in a folder of `export.write_onnx`, in the place of the model that they came from."""

    name = "onnx"
    reads = ("text",)

    def __init__(self, model: Method, folder: Path):
        import onnxruntime

        super().__init__()
        self.config, self.tokenize, self._own_pictures = model.config, model.tokenize, model.preprocess
        self.here = nn.Parameter(torch.empty(0))  # which says that it computes on the CPU
        files = {part: folder / f"{part}.onnx" for part in ("image", "text")}
        self.megabytes = sum(file.stat().st_size for file in files.values()) / 1e6
        self.sessions = {part: onnxruntime.InferenceSession(file) for part, file in files.items()}

    @property
    def preprocess(self):
        return self._own_pictures

    @property
    def mean(self):
        return self._own_pictures.mean

    @property
    def std(self):
        return self._own_pictures.std

    def embed_image(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.sessions["image"].run(None, {"pixels": images.numpy()})[0])

    def embed_text(self, ids: Tensor) -> Tensor:
        return torch.from_numpy(self.sessions["text"].run(None, {"ids": ids.numpy()})[0])


# What `reid benchmark` measures, each by its name and for a preset.
MEASUREMENTS: dict[str, Callable[[str], list[dict]]] = {
    "steps": steps,
    "parts": parts,
    "query": whole_query,
    "arithmetic": arithmetic,
    "memory": memory,
    "evaluation": lambda preset: evaluation(),
    "search": lambda preset: searches(),
    "encoding": encoding,
    "pictures": lambda preset: pictures(load("toy"), preset),
    "onnx": lambda preset: onnx_towers(load("toy") if preset == "toy" else None, preset),
}
