"""How the toy CLIP was pre-trained, on drawn people that no split contains.

`python -m reidlib.backbones.toy_recipe` takes nine minutes on one core and writes the weights that are shipped.
"""

import math
from collections.abc import Callable
from itertools import chain

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from reidlib.backbones.clip import CLIP, create_clip
from reidlib.backbones.toy import IMAGE_SIZE, WEIGHTS, WIDTH, WORDS, all_words
from reidlib.data.augment import BatchAugment
from reidlib.losses import both_ways, itc
from reidlib.toyworld.pretraining import DRAWN, pretraining_pairs


def pretrain(
    pictures: int = 16_000, epochs: int = 12, seed: int = 0, report: Callable[[int, float], None] = print
) -> CLIP:
    """The recipe: plain contrastive learning on pictures and captions, every picture its own class, as CLIP was made.

    Photos, whose colours are easily learned, come alone for three epochs, drawings beside them from then on. `report`
    is told the step and the loss now and then.
    """
    torch.manual_seed(seed)
    clip = create_clip("toy-random")
    clip.model.token_embedding.weight.data.copy_(all_words(torch.empty(0, dtype=torch.long), torch.empty(0, WIDTH)))
    drawn, captions = pretraining_pairs(pictures, seed)
    drawn = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    ids, augment = clip.tokenize(captions), BatchAugment("cfine", IMAGE_SIZE, clip.preprocess.mean, clip.preprocess.std)
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


def ship(clip: CLIP) -> None:
    """Writes the weights in half precision, with the embeddings of only those words that were trained."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in clip.model.state_dict().items()}
    state[WORDS] = state[WORDS][clip.trained_words].contiguous()
    save_file({**state, "words": clip.trained_words.int()}, WEIGHTS)


if __name__ == "__main__":
    ship(pretrain())
