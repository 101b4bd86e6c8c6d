"""The toy CLIP: open_clip's own class, a few layers deep, pre-trained on drawn people that no split contains.

`python -m reidlib.backbones.toy` runs the recipe (nine minutes on one core) and writes the weights that are shipped.
"""

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.backbones.clip import CLIP, resized_positions
from reidlib.data.augment import CLIP as STATISTICS
from reidlib.data.images import Preprocess
from reidlib.losses import both_ways, itc

WEIGHTS = Path(__file__).with_name("toy_clip.safetensors")
IMAGE_SIZE = (128, 64)
WIDTH = 96
VISION = {"layers": 4, "width": WIDTH, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 3, "layers": 2}
POSITIONS, WORDS = "visual.positional_embedding", "token_embedding.weight"


def toy_clip(image_size: tuple[int, int] | None = None, weights: bool = True) -> CLIP:
    """The toy CLIP for pictures of (height, width), with its shipped weights or with random ones.

    Words that its training captions never used keep a small random embedding that is the same on every machine.
    """
    import open_clip

    image_size = tuple(image_size or IMAGE_SIZE)
    config = {"embed_dim": WIDTH, "vision_cfg": {**VISION, "image_size": image_size}, "text_cfg": TEXT}
    model = open_clip.CLIP(**config)
    if weights:
        state = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
        state[WORDS] = _all_words(state.pop("words").long(), state[WORDS])
        grid = IMAGE_SIZE[0] // VISION["patch_size"], IMAGE_SIZE[1] // VISION["patch_size"]
        state[POSITIONS] = resized_positions(state[POSITIONS], grid, model.visual.grid_size, "bicubic")
        model.load_state_dict(state)
    return CLIP(model, open_clip.tokenizer.SimpleTokenizer(), Preprocess(image_size, *STATISTICS), config)


def pretrain(
    pictures: int = 16_000, epochs: int = 12, seed: int = 0, report: Callable[[int, float], None] = print
) -> CLIP:
    """The recipe: plain contrastive learning on pictures and captions, every picture its own class, as CLIP was made.

    Photos, whose colours are easily learned, come alone for three epochs, drawings beside them from then on. `report`
    is told the step and the loss now and then.
    """
    from reidlib.data.augment import CLIP as STATISTICS
    from reidlib.data.augment import BatchAugment
    from reidlib.toyworld.pretraining import DRAWN, pretraining_pairs

    torch.manual_seed(seed)
    clip = toy_clip(weights=False)
    clip.model.token_embedding.weight.data.copy_(_all_words(torch.empty(0, dtype=torch.long), torch.empty(0, WIDTH)))
    drawn, captions = pretraining_pairs(pictures, seed)
    drawn = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    ids, augment = clip.tokenize(captions), BatchAugment("cfine", IMAGE_SIZE, *STATISTICS)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    photos, drawings = torch.arange(len(ids)).tensor_split([round(len(ids) * (1 - DRAWN))])
    plans = [_batches(photos) for _ in range(3)] + [_batches(photos, drawings) for _ in range(epochs - 3)]
    steps = sum(map(len, plans))
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / 50) * (1 + math.cos(math.pi * t / steps)) / 2
    )
    for step, chosen in enumerate(chain.from_iterable(plans)):
        images = normalize(clip.encode_image(augment(drawn[chosen])), dim=-1)
        texts = normalize(clip.encode_text(ids[chosen]), dim=-1)
        loss = both_ways(itc, clip.logit_scale.exp().clamp(max=100) * images @ texts.T, torch.eye(len(chosen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
        if step % 50 == 0 or step == steps - 1:
            report(step, round(loss.item(), 3))
    clip.trained_words = ids.unique()
    return clip


def _batches(*kinds: Tensor, size: int = 64) -> list[Tensor]:
    """An epoch's batches in random order, each of one kind: telling photos from drawings is too easy to learn from."""
    batches = [batch for kind in kinds for batch in kind[torch.randperm(len(kind))].split(size)]
    return [batches[i] for i in torch.randperm(len(batches))]


def ship(clip: CLIP, path: Path = WEIGHTS) -> None:
    """Writes the weights in half precision, with the embeddings of only those words that were trained."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in clip.model.state_dict().items()}
    state[WORDS] = state[WORDS][clip.trained_words].contiguous()
    save_file({**state, "words": clip.trained_words.int()}, path)


def _all_words(rows: Tensor, known: Tensor) -> Tensor:
    words = torch.randn(TEXT["vocab_size"], TEXT["width"], generator=torch.Generator().manual_seed(0)) * 0.02
    words[rows] = known
    return words


if __name__ == "__main__":
    ship(pretrain())
