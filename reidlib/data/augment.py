"""Turns cached uint8 pictures into normalised model input, with each paper's augmentation done on a batch at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reidlib.errors import ConfigError

# (mean, std) of the channels, pictures in [0, 1].
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI CLIP
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's model zoo
CHATPEDES = (0.38901278, 0.3651612, 0.34836376), (0.24344306, 0.23738699, 0.23368555)  # official DiaNA
MALS = (0.4416847, 0.41812873, 0.4237452), (0.3088255, 0.29743394, 0.301009)  # official DiaNA, stage 1

RECIPES = ("irra", "cfine", "interactreid")
ERASE_ASPECT = (0.3, 3.3)  # torchvision's default
CROP_ASPECT = (3 / 4, 4 / 3)  # torchvision's default
ATTEMPTS = 10  # draws of a box before torchvision, and so we, give up on it


def normalise(
    images: Tensor, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...], white: float
) -> Tensor:
    """Pictures (..., 3, H, W) from 0 to `white` -> float32, (x / white - mean) / std by channel; floats in place."""
    mean, std = (torch.as_tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return images.float().mul_(1 / (white * std)).sub_(mean / std)


class BatchAugment:
    """Training augmentation of a whole batch: uint8 (B, 3, H, W) -> normalised float (B, 3, H, W), same device.

    Each picture draws its own parameters, equal in distribution to torchvision's transforms applied one by one:

    * "irra" (CLIP fine-tuning, CFFA, DiaNA): flip; pad with black and crop back; normalise; erase a box of 2 to 40 %
      of the area with p = .5, filled with `mean` as a normalised value, as the official code does. The papers pad
      10 pixels at height 384; other heights pad in proportion, at least 2.
    * "cfine": flip; normalise.
    * "interactreid": two operations drawn with replacement from six (colour jitter .1, rotation by at most 15 degrees,
      crop of 90 to 100 % of the area, grey with p = .1, flip, erase 10 to 20 % in black with p = .5); normalise. The
      crop's aspect is relative to the picture's: the same on the paper's squares, and a person keeps their feet.

    Parameters are drawn on the CPU, so a seed means the same on every device. Raises ConfigError on an unknown recipe.
    """

    def __init__(self, recipe: str, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]):
        if recipe not in RECIPES:
            raise ConfigError(f"There is no augmentation {recipe!r}; expected one of {', '.join(RECIPES)}.")
        self.recipe, self.size = recipe, tuple(size)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        self.padding = max(2, round(10 * size[0] / 384))

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if tuple(images.shape[1:]) != (3, *self.size):
            raise ConfigError(f"Pictures of shape {tuple(images.shape[1:])} came to an augmentation of {self.size}.")
        if self.recipe == "interactreid":
            return normalise(two_of_six(images.float().div_(255), generator), self.mean, self.std, white=1)
        draw = Draw(len(images), *self.size, generator)
        mirrored = draw.chance(0.5)
        if self.recipe == "cfine":
            return normalise(hflip(images, mirrored), self.mean, self.std, white=255)
        images = normalise(shift(images, *draw.offsets(self.padding), mirrored), self.mean, self.std, white=255)
        return erase(images, *draw.boxes((0.02, 0.4), ERASE_ASPECT, p=0.5), value=self.mean)


class Draw:
    """Random parameters for a batch of `count` pictures of (height, width), each a CPU tensor of (count,)."""

    def __init__(self, count: int, height: int, width: int, generator: torch.Generator | None):
        self.count, self.height, self.width, self.generator = count, height, width, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator) * (high - low) + low

    def chance(self, p: float) -> Tensor:
        return self.uniform(0, 1) < p

    def integers(self, ends: Tensor | int) -> Tensor:
        """Uniform over 0 .. ends - 1."""
        return (torch.rand(self.count, generator=self.generator, dtype=torch.float64) * ends).long()

    def orders(self, length: int) -> Tensor:
        """A random order of 0 .. length - 1 for each picture, (count, length)."""
        return self.uniform(0, 1, length).argsort(1)

    def relative(self, aspect: tuple[float, float]) -> tuple[float, float]:
        """Aspects counted from the picture's own instead of from a square."""
        return tuple(value * self.height / self.width for value in aspect)

    def offsets(self, most: int) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal shifts, uniform over -most .. most: where padding then cropping back would land."""
        return self.integers(2 * most + 1) - most, self.integers(2 * most + 1) - most

    def boxes(self, scale, aspect, p: float = 1.0, may_fill: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(top, left, height, width) of boxes with their share of the area uniform in `scale`, aspect log-uniform.

        The first of ten attempts that is smaller than the picture (`may_fill`: or as large); all four 0 where none is,
        or with probability 1 - p. The aspect is height / width.
        """
        area = self.uniform(*scale, ATTEMPTS) * (self.height * self.width)
        ratio = self.uniform(math.log(aspect[0]), math.log(aspect[1]), ATTEMPTS).exp()
        heights, widths = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (heights < self.height + may_fill) & (widths < self.width + may_fill)
        first = fits.byte().argmax(1, keepdim=True)
        wanted = fits.any(1) & self.chance(p)
        height, width = (sides.gather(1, first).squeeze(1) * wanted for sides in (heights, widths))
        top, left = self.integers(self.height - height + 1), self.integers(self.width - width + 1)
        return top * wanted, left * wanted, height, width


def hflip(images: Tensor, which: Tensor) -> Tensor:
    """Mirrors the pictures marked in `which` (B,)."""
    return torch.where(_column(which, images), images.flip(-1), images)


def shift(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Each picture, first mirrored where `mirrored` (B,) says, through a window moved by (down, right) pixels (B,).

    What comes in from outside is black.
    """
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height) + down[:, None], torch.arange(width) + right[:, None]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    # A black frame one pixel wide stands for everything outside.
    rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
    index = (rows.to(images.device)[:, :, None] * (width + 2) + columns.to(images.device)[:, None, :]).flatten(1)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, index[:, None].expand(-1, 3, -1)).view_as(images)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, value: Tensor) -> Tensor:
    """Fills, in place, a box of each picture (B,) with `value` (3, 1, 1)."""
    rows, columns = torch.arange(images.shape[2]) - top[:, None], torch.arange(images.shape[3]) - left[:, None]
    box = ((rows >= 0) & (rows < height[:, None]))[:, :, None] & ((columns >= 0) & (columns < width[:, None]))[:, None]
    return torch.where(box[:, None].to(images.device), value.to(images), images, out=images)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each picture anticlockwise about its centre by `degrees` (B,), nearest pixel, corners black."""
    height, width = images.shape[-2:]
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(cosine)
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
    theta = torch.stack(rows, 1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Enlarges a box of each picture (B,) to the whole frame, bilinear; a 0 x 0 box leaves the picture alone."""
    whole = torch.tensor(images.shape[-2:])
    rows, columns = (
        _stretch(start, torch.where(side > 0, side, full), int(full)).to(images)
        for start, side, full in zip((top, left), (height, width), whole, strict=True)
    )
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _stretch(start: Tensor, side: Tensor, full: int) -> Tensor:
    """Where in [-1, 1] each of `full` pixels finds its source when `side` pixels from `start` fill the line."""
    start, side = start[:, None].double(), side[:, None].double()
    source = (torch.arange(full, dtype=torch.float64) + 0.5) * side / full
    source = start + torch.minimum(source.clamp(min=0.5), side - 0.5)  # never beyond the box's own pixels
    return source * 2 / full - 1


def grey(images: Tensor) -> Tensor:
    """Brightness of each pixel, (B, 1, H, W), with ITU-R 601 weights."""
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation multiplied by `factors` (B, 3), in each picture's own `order` (B, 3)."""
    factors, order = factors.to(images), order.to(images.device)
    for which in order.unbind(1):
        level = grey(images)
        contrast, saturation = _column(which == 1, images), _column(which == 2, images)
        anchor = torch.where(contrast, level.mean((2, 3), keepdim=True), level) * (contrast | saturation)
        factor = _column(factors.gather(1, which[:, None]).squeeze(1), images)
        images = torch.lerp(anchor, images, factor).clamp_(0, 1)
    return images


# The six operations that InteractReID draws from: (pictures in [0, 1], their Draw) -> pictures.
SIX = (
    lambda images, draw: jitter(images, draw.uniform(0.9, 1.1, 3), draw.orders(3)),
    lambda images, draw: rotate(images, draw.uniform(-15, 15)),
    lambda images, draw: crop(images, *draw.boxes((0.9, 1), draw.relative(CROP_ASPECT), may_fill=True)),
    lambda images, draw: torch.where(_column(draw.chance(0.1), images), grey(images), images),
    lambda images, draw: hflip(images, draw.chance(0.5)),
    lambda images, draw: erase(images, *draw.boxes((0.1, 0.2), ERASE_ASPECT, p=0.5), value=torch.zeros(3, 1, 1)),
)


def two_of_six(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """InteractReID's augmentation of float pictures (B, 3, H, W) in [0, 1], in place, before they are normalised."""
    for _ in range(2):
        which = torch.randint(len(SIX), (len(images),), generator=generator)
        for number, operation in enumerate(SIX):
            rows = (which == number).nonzero().squeeze(1)
            if len(rows):
                draw = Draw(len(rows), *images.shape[-2:], generator)
                rows = rows.to(images.device)
                images[rows] = operation(images[rows], draw)
    return images


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device).view(-1, 1, 1, 1)
