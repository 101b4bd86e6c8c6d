"""Training steps: what a method's own head adds to the bare two-tower step of the very same towers."""

import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from reidlib import methods
from reidlib.benchmarks.machine import alternate, paired_ratio
from reidlib.benchmarks.shapes import CountedMasks, Unfilled, without_contents
from reidlib.config import Config
from reidlib.devices import autocast, pick_device
from reidlib.losses import both_ways, itc
from reidlib.methods.base import Method

METHODS = ("clip", "cfine", "cffa", "interactreid-1", "interactreid", "diana")
GOAL = 1.15  # a step should take at most so many times the bare one
SCALE = 50.0  # inverse temperature of the bare step

# Random weights of the papers' sizes: nothing is fetched, and time and memory do not depend on the values.
RANDOM: dict[str, dict[str, Any]] = {
    "clip": {"pretrained": ""},
    "cfine": {"pretrained": "", "text_encoder": "base-random"},
    "cffa": {"pretrained": ""},
    "interactreid-1": {"pretrained": ""},
    "interactreid": {"pretrained": ""},
    # Both steps should read whole dialogues, where training cuts them off at a random round.
    "diana": {
        "image_tower": "swinv2-base-random",
        "text_tower": "llama-3.2-1b-random",
        "drop_path": 0.0,
        "random_rounds": False,
    },
}
TOY = {"diana": {"random_rounds": False}}

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


def steps(
    preset: str = "toy", names: Sequence[str] = METHODS, repeats: int = 7, batch_size: int = 0, device: str = "auto"
) -> list[dict]:
    """Time of a step (forward, losses, backward, optimiser) and of the bare step, side by side, a row a method.

    batch_size: 0 takes what one device has of the preset's. The peaks are torch's own count on a GPU; on the CPU they
    are left to `memory`, as the memory of a process says little. Raises ConfigError for an unknown method or preset.
    """
    rows = []
    for name in names:
        model = build(name, preset).to(pick_device(device)).train()
        size = batch_size or share_of_batch(model)
        made = batch(model, size)
        optimizer = optimizer_of(model)
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


def arithmetic(preset: str = "paper", names: Sequence[str] = METHODS, batch_size: int = 0) -> list[dict]:
    """Floating-point operations of forward and backward pass in 10^12, and of the bare step: exact, and needs no GPU.

    It counts matrix products, convolutions and attention; a real step also spends time on all that is small.
    """
    rows = []
    for name in names:
        with Unfilled():
            model = without_contents(build(name, preset)).train()
        size = batch_size or share_of_batch(model)
        made = batch(model, size)
        step = _operations(lambda: sum(model.losses(made).values()))  # noqa: B023
        bare = _operations(lambda: bare_loss(model, made))  # noqa: B023
        rows.append({
            "method": name, "preset": preset, "batch": size, "step": step / 1e12, "bare": bare / 1e12,
            "ratio": step / bare,
        })  # fmt: skip
    return rows


def _operations(loss: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, CountedMasks():
        loss().backward()
    return counter.get_total_flops()


def build(name: str, preset: str, **settings: Any) -> Method:
    """A method at a preset with random weights where the preset would fetch some. settings: fields of its config."""
    overrides = (RANDOM if preset == "paper" else TOY).get(name, {})
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
        if "captions" in model.needs:
            made["caption_ids"] = model.tokenize([" ".join([CAPTION] * times)] * size)
        if "dialogues" in model.needs:
            made["dialogue_ids"] = model.tokenize_dialogues([DIALOGUE * times] * size)
    if "sketches" in model.needs:
        made["sketches"] = pictures[1]
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in made.items()}


def bare_loss(model: Method, made: dict[str, Any]) -> Tensor:
    """Symmetric ITC on the pooled features of the method's own towers, fed with what the method feeds them.

    InteractReID shows its image tower sketches as well, and in stage 2 the frozen text tower reads one prompt, whose
    gradient it passes on as the pseudo-word needs it; there the bare step does the same without a mapping.
    """
    towers = {"cfine": _cfine, "diana": _diana, "interactreid-1": _interactreid, "interactreid": _interactreid}
    features = [normalize(view.float(), dim=-1) for view in towers.get(model.name, _clip)(model, made)]
    targets = torch.eye(len(features[0]), device=model.device)
    return sum(both_ways(itc, SCALE * view @ features[0].T, targets) for view in features[1:])


def _clip(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    ids = made["caption_ids"]
    if getattr(model.config, "trim", True):
        return model.clip.encode_image(made["images"]), model.clip.encode_text(ids)
    tokens = model.clip.text_tokens(ids).tokens  # padding and all, as the method has it
    return model.clip.encode_image(made["images"]), tokens[torch.arange(len(ids)), ids.argmax(dim=1)]


def _cfine(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    ids, bert = made["caption_ids"], model.bert
    words = bert.model(input_ids=ids, attention_mask=(ids != bert.pad).long()).last_hidden_state
    return model.clip.encode_image(made["images"]), words[:, 0]


def _diana(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(
        side.pooled
        for side in (
            model.encode_image(made["images"], refine=False),
            model.encode_text(made["dialogue_ids"], refine=False),
        )
    )


def _interactreid(model: Method, made: dict[str, Any]) -> tuple[Tensor, ...]:
    photos, sketches = model.clip.encode_image(torch.cat([made["images"], made["sketches"]])).chunk(2)
    if "caption_ids" in made:
        return photos, sketches, model.clip.encode_text(made["caption_ids"])
    ids = model.prompt.expand(len(photos), -1)
    embedded = model.clip.embed_tokens(ids).detach().requires_grad_()
    return photos, sketches, model.clip.encode_text(ids, embedded=embedded)


def train_step(model: Method, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    with autocast(model.device, model.config.precision if model.device.type == "cuda" else "fp32"):
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
