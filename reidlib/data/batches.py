"""The batches of a training: pictures with their words, sketches or dialogues, in an order that a seed decides."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reidlib.config import Config
from reidlib.data.augment import CLIP
from reidlib.data.images import Pixels, Preprocess
from reidlib.data.table import DISTRACTOR, PersonData
from reidlib.errors import DataError, UnreadableError

if TYPE_CHECKING:  # methods are built on data
    from reidlib.methods.base import Method

PER_PERSON = 4  # pictures of one person in a batch of the identity sampler
POOL = 32  # batches that are sorted by length together


def data_pixels(data: PersonData, how: Preprocess | tuple[int, int]) -> Pixels:
    """Every picture and sketch of a data set, decoded once as a model takes them, or squashed to (height, width).

    Those that cannot be read are taken out of `data`, with one warning. Raises DataError where none is left.
    """
    how = how if isinstance(how, Preprocess) else Preprocess(how, *CLIP)
    try:
        return Pixels(data.root, sorted(data.pictures), how.size, how.interpolation, resize=how.resize)
    except UnreadableError as error:
        data.leave_out(error.faults)
        return Pixels(data.root, sorted(data.pictures), how.size, how.interpolation, resize=how.resize)


class TrainBatches(Dataset):
    """The training split as batches of what a model trains on: `for batch in batches.epoch(0)`.

    An item is a picture with the parts that `model.trains_on` names. An epoch visits every caption (or dialogue) once
    with its picture. Without words, it visits photos or sketches, whichever are more, once, each with a partner of the
    same person drawn anew every epoch. Where a sketch belongs to the person and not to the picture, it is drawn anew
    as well, and so is whether a caption is replaced by its back-translation (with probability
    `config.back_translation`). Everything drawn depends on (seed, epoch) alone, so an interrupted epoch can be taken up
    in the middle.

    pixels: the data set's pictures at the model's size; left out, they are decoded here. fingerprint: of the data.
    Raises DataError where the split holds nothing to train on, or less than an item for each of `config.devices`.
    """

    def __init__(
        self, data: PersonData, model: "Method", config: Config, pixels: Pixels | None = None, split: str = "train"
    ):
        self.config, self.parts = config, tuple(model.trains_on)
        self.pixels = pixels or data_pixels(data, model.preprocess)
        self.fingerprint = data.fingerprint()
        frame = data.split(split)
        said = next((part for part in ("text", "turns") if part in self.parts), None)
        if "sketch" in self.parts:
            frame = frame[frame["sketch"].str.len() > 0]
        if said == "text":  # a caption without back-translation stands for itself
            frame["text_bt"] = frame["text_bt"].where(frame["text_bt"].str.len() > 0, frame["text"])
        if said:
            frame = frame.explode([said, "text_bt"] if said == "text" else said).dropna(subset=said)
        if frame.empty:
            parts = " and ".join(self.parts) or "anything"
            raise DataError(f"The {split} split of {data.name} has no pictures with {parts}.")
        self.said = said
        self.words = frame[said].tolist() if said else []
        self.other_words = frame["text_bt"].tolist() if config.back_translation and said == "text" else []
        self.image_ids = frame.index.to_numpy()
        self.people, self.pids = np.unique(frame["pid"].to_numpy(), return_inverse=True)
        self.image_rows = np.array([self.pixels.index[path] for path in frame["image"]])
        self.sketch_rows = [np.array([self.pixels.index[path] for path in paths]) for paths in frame["sketch"]]
        if "sketch" in self.parts and not said and data.sketch_of == "person":
            self._visit_the_more_numerous()
        if said:
            tokenize = {"text": model.tokenize, "turns": model.tokenize_turns}[said]
            self.ids = tokenize(self.words + self.other_words)  # (items, L), below them the back-translations
            self.lengths = np.array([_letters(words) for words in self.words])
        world = config.devices * config.nodes
        if len(self) < world:
            raise DataError(f"{len(self)} training items cannot be shared by {world} processes; expected one each.")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch, each of `config.accumulate` batches or, the last, of what is left."""
        return math.ceil(self.batches_per_epoch / self.config.accumulate)

    @property
    def batches_per_epoch(self) -> int:
        """An epoch shorter than one batch is one batch; a rest below two items a process is left out."""
        whole, rest = divmod(len(self), self.config.batch_size)
        too_few = rest < 2 * self.config.devices * self.config.nodes
        return max(whole, 1) if self.config.drop_last or too_few else whole + 1

    def epoch(self, number: int, skip: int = 0, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """The batches of one process of `world` in an epoch (from 0), from batch `skip` on.

        A batch: uint8 images and sketch (B, 3, H, W), ids of text or turns (B, L), pids (B,) from 0, image_ids (B,).
        `config.batch_size` counts the items of all processes together, and the shares of all processes, in order, are
        the batch that one process alone would get. Each gets as many items, so a last batch that cannot be shared out
        equally loses the few that are over.
        """
        self._draw(number)
        parts = [part[: len(part) // world * world] for part in self.order(number)[skip:]]
        shares = [np.split(part, world)[rank] for part in parts]
        pin, workers = torch.cuda.is_available(), self.config.workers
        return iter(DataLoader(self, batch_sampler=shares, num_workers=workers, collate_fn=_as_is, pin_memory=pin))

    def order(self, epoch: int) -> list[np.ndarray]:
        """The items of each batch of an epoch."""
        rng = np.random.default_rng((self.config.seed, epoch, 0))
        order, size, count = rng.permutation(len(self)), self.config.batch_size, self.batches_per_epoch
        if self.config.sampler == "identity":
            order = self._people_together(order, rng)
        elif self.config.sampler == "length" and self.said:
            return self._lengths_together(order[: count * size], rng)
        return [order[number * size : (number + 1) * size] for number in range(count)]

    # -- a data set of torch -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.pids)

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        batch = {
            "images": self.pixels[self._images[items]],
            "pids": torch.as_tensor(self.pids[items]),
            "image_ids": torch.as_tensor(self.image_ids[items]),
        }
        if "sketch" in self.parts:
            batch["sketch"] = self.pixels[self._sketches[items]]
        if self.said:
            batch[self.said] = self.ids[self._said[items]]
        return batch

    # -- what chance decides -------------------------------------------------------------------------------------------

    def _draw(self, epoch: int) -> None:
        """Draws the partners of this epoch."""
        rng = np.random.default_rng((self.config.seed, epoch, 1))
        self._images = self.image_rows
        if self.image_rows.dtype == object:
            self._images = _one_each(self.image_rows, rng)
        if "sketch" in self.parts:
            self._sketches = _one_each(self.sketch_rows, rng)
        self._said = np.arange(len(self))
        if self.other_words:
            self._said = self._said + len(self) * (rng.random(len(self)) < self.config.back_translation)

    def _people_together(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Items in groups of `PER_PERSON` pictures of a person, the groups shuffled."""
        order = order[np.argsort(self.pids[order], kind="stable")]  # people together, their pictures shuffled
        place = np.arange(len(order)) - np.searchsorted(self.pids[order], self.pids[order])
        key = self.pids[order] * (len(order) + 1) + place // PER_PERSON
        _, group = np.unique(key, return_inverse=True)
        return order[np.argsort(rng.permutation(group.max() + 1)[group], kind="stable")]

    def _lengths_together(self, order: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of items of similar length: sorted within pools of `POOL` random batches, the batches shuffled.

        A batch is random but for its lengths, so that little is spent on padding. The last, if smaller, stays last.
        """
        size = self.config.batch_size
        pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        whole = len(order) // size
        return [batches[number] for number in rng.permutation(whole)] + batches[whole:]

    def _visit_the_more_numerous(self) -> None:
        """Items become sketches where there are more of them than photos, and the photo is what is drawn."""
        photos, owners = self.image_rows, self.pids
        sketches, first = np.unique(np.concatenate(self.sketch_rows), return_index=True)
        if len(sketches) <= len(photos):
            return
        lengths = [len(rows) for rows in self.sketch_rows]
        source = np.repeat(np.arange(len(photos)), lengths)[first]
        of_person = [photos[owners == person] for person in range(len(self.people))]
        self.pids, self.image_ids = owners[source], self.image_ids[source]
        self.image_rows = np.fromiter((of_person[person] for person in self.pids), dtype=object, count=len(sketches))
        self.sketch_rows = [np.array([row]) for row in sketches]


class MixedBatches(TrainBatches):
    """The training split as batches for a model that `mixes`: pictures with whatever is said or drawn of them.

    An epoch visits every picture of which anything is told once, with a caption, turns of a dialogue (a random choice
    of one to `most_turns`), a sketch and another photo of its person, each drawn anew. A batch: uint8 images, sketch
    and photo (B, 3, H, W), ids of text (B, L) and of turns (B, T, L), each turn by itself, and what of these each item
    has: has_text, has_sketch and has_photo (B,), has_turns (B, T). A part that no picture of the split has is left out.
    Raises DataError where the split holds no picture with any of them.
    """

    said = None  # an item is a picture

    def __init__(
        self, data: PersonData, model: "Method", config: Config, pixels: Pixels | None = None, split: str = "train"
    ):
        self.config, self.most_turns = config, config.most_turns
        self.pixels = pixels or data_pixels(data, model.preprocess)
        self.fingerprint = data.fingerprint()
        frame = data.split(split)
        told_of = frame[["text", "turns", "sketch"]].map(len).any(axis=1)
        frame = frame[(frame["pid"] != DISTRACTOR) & told_of]
        if frame.empty:
            raise DataError(f"The {split} split of {data.name} has no pictures with text, turns or sketch.")
        self.image_ids = frame.index.to_numpy()
        self.people, self.pids = np.unique(frame["pid"].to_numpy(), return_inverse=True)
        self.image_rows = np.array([self.pixels.index[path] for path in frame["image"]])
        self.texts, self.dialogues = _Ragged(frame["text"]), _Ragged(frame["turns"])
        self.turns = _Ragged(self.dialogues.items)
        self.text_ids = model.tokenize(self.texts.items) if self.texts.items else None
        self.turn_ids = model.tokenize_turns(self.turns.items) if self.turns.items else None
        self.sketches = _Ragged([self.pixels.index[path] for path in paths] for paths in frame["sketch"])
        order = np.argsort(self.pids, kind="stable")
        self.of_person = _Ragged(np.split(order, np.flatnonzero(np.diff(self.pids[order])) + 1))
        self.place = np.empty(len(order), dtype=np.int64)  # of a picture among those of its person
        self.place[order] = np.arange(len(order)) - self.of_person.start[self.pids[order]]

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        items = np.asarray(items)
        batch = {
            "images": self.pixels[self.image_rows[items]],
            "pids": torch.as_tensor(self.pids[items]),
            "image_ids": torch.as_tensor(self.image_ids[items]),
        }
        ids = {"text": self.text_ids, "turns": self.turn_ids}
        for name, columns in self._drawn.items():
            rows, has = (column[items] for column in columns)
            batch |= {name: ids.get(name, self.pixels)[rows], f"has_{name}": torch.as_tensor(has)}
        return batch

    def _draw(self, epoch: int) -> None:
        rng, count = np.random.default_rng((self.config.seed, epoch, 1)), len(self)
        everyone = np.arange(count)
        own = self.of_person.count[self.pids]
        other = (self.place + 1 + (rng.random(count) * (own - 1)).astype(np.int64)) % own
        others = self.of_person.start[self.pids] + other
        self._drawn = {"photo": (self.image_rows[np.array(self.of_person.items)[others]], own > 1)}
        for name, ragged in (("text", self.texts), ("sketch", self.sketches)):
            if ragged.items:
                rows, has = ragged.one_each(everyone, rng)
                self._drawn[name] = (np.array(ragged.items)[rows] if name == "sketch" else rows, has)
        if self.turn_ids is not None:
            dialogue, has = self.dialogues.one_each(everyone, rng)
            turns = np.where(has, self.turns.count[dialogue], 0)
            keys = rng.random((count, max(self.turns.count)))
            keys[np.arange(keys.shape[1]) >= turns[:, None]] = np.inf  # the end of the shorter ones
            chosen = keys.argsort(axis=1)[:, : self.most_turns]
            kept = np.minimum(turns, 1 + (rng.random(count) * self.most_turns).astype(np.int64))
            there = np.arange(chosen.shape[1]) < kept[:, None]
            self._drawn["turns"] = (np.where(there, self.turns.start[dialogue][:, None] + chosen, 0), there)


class _Ragged:
    """Lists of unequal length as one: `items`, and where those of each begin and how many they are."""

    def __init__(self, lists: Iterable[Sequence]):
        lists = [list(one) for one in lists]
        self.items = [item for one in lists for item in one]
        self.count = np.array([len(one) for one in lists], dtype=np.int64)
        self.start = np.cumsum(self.count) - self.count

    def one_each(self, which: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places in `items`, one drawn from each of these lists, and whether there is any (else 0)."""
        count = self.count[which]
        return np.where(count > 0, self.start[which] + (rng.random(len(which)) * count).astype(np.int64), 0), count > 0


def _letters(words: str | Sequence[tuple[str, str]]) -> int:
    """How long a caption or a dialogue is, to its reader as to a tokenizer."""
    return len(words) if isinstance(words, str) else sum(len(question) + len(answer) for question, answer in words)


def _one_each(choices: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(len(choices))
    return np.array([rows[int(draw * len(rows))] for rows, draw in zip(choices, draws, strict=True)])


def _as_is(batch):
    return batch
