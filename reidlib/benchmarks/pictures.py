"""How fast pictures become batches: decoded one by one, out of the cache, and augmented together."""

from collections.abc import Callable
from statistics import median

import torch
from torchvision.transforms import v2

from reidlib.benchmarks.machine import alternate
from reidlib.benchmarks.steps import build
from reidlib.data import PersonData
from reidlib.data.batches import data_pixels
from reidlib.data.images import open_image
from reidlib.data.transforms import BatchAugment
from reidlib.methods.base import Method

RATE = "pictures_per_second"


def pictures(data: PersonData, preset: str = "toy", name: str = "cfine", count: int = 256) -> list[dict]:
    """Pictures a second of three ways to make augmented batches for a method, the same `count` pictures in each.

    1. "files, one by one": what a plain torchvision loader does, in one process.
    2. "cache, one by one": decoded once before, augmented by the same torchvision transforms.
    3. "cache, batches": decoded once before, augmented together as training does it.

    Pictures are made up to the size of the method's towers. The file system's cache is warm in each.
    """
    model = build(name, preset)
    cache = data_pixels(data, model.image_size)
    chosen = list(data.split("train")["image"])[:count]
    rows = [cache.index[path] for path in chosen]
    size = model.config.batch_size
    each, together = one_by_one(model), BatchAugment("irra", model.image_size, model.mean, model.std)
    resize = v2.Compose([v2.Resize(model.image_size, v2.InterpolationMode.BICUBIC), v2.PILToTensor()])
    ways: dict[str, Callable[[list[int]], torch.Tensor]] = {
        "files, one by one": lambda part: torch.stack(
            [each(resize(open_image(data.root / cache.paths[i]))) for i in part]
        ),
        "cache, one by one": lambda part: torch.stack([each(image) for image in cache[part]]),
        "cache, batches": lambda part: together(cache[part]),
    }
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    runs = {way: (lambda make=make: [make(part) for part in parts]) for way, make in ways.items()}
    seconds = alternate(runs, repeats=3, warm_up=1)
    return [{"way": way, "preset": preset, RATE: len(rows) / median(seconds[way])} for way in ways]


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
