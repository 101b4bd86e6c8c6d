"""Training items of any method: pictures with their captions, sketches or dialogues, served in whole batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reidlib.data.images import Pixels, Preprocess
from reidlib.data.table import PersonData
from reidlib.data.transforms import CLIP
from reidlib.errors import ConfigError, DataError, UnreadableError

PER_PERSON = 4  # pictures of one person in a batch of the identity sampler


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


class TrainSet(Dataset):
    """The training split as items of one picture each with what `parts` names ("text", "turns", "sketch").

    An epoch visits every caption (or dialogue) once with its picture. Without words, it visits photos or sketches,
    whichever are more, once, each with a partner of the same person drawn anew every epoch. Where a sketch belongs to
    the person and not to the picture, it is drawn anew as well, and so is whether a caption is replaced by its
    back-translation (with probability `back_translation`). Everything drawn depends on (seed, epoch) alone, so an
    interrupted epoch can be taken up in the middle.
    """

    def __init__(
        self,
        data: PersonData,
        pixels: Pixels,
        parts: Sequence[str],
        *,
        seed: int = 0,
        back_translation: float = 0.0,
        split: str = "train",
    ):
        frame = data.split(split)
        self.pixels, self.parts, self.seed, self.back_translation = pixels, tuple(parts), seed, back_translation
        said = next((kind for kind in ("text", "turns") if kind in parts), None)
        if "sketch" in parts:
            frame = frame[frame["sketch"].str.len() > 0]
        if said == "text":  # a caption without back-translation stands for itself
            frame["text_bt"] = frame["text_bt"].where(frame["text_bt"].str.len() > 0, frame["text"])
        if said:
            frame = frame.explode([said, "text_bt"] if said == "text" else said).dropna(subset=said)
        if frame.empty:
            raise DataError(
                f"The {split} split of {data.name} has no pictures with {' and '.join(parts) or 'anything'}."
            )
        self.said = said
        self.words = frame[said].tolist() if said else []
        self.other_words = frame["text_bt"].tolist() if back_translation and said == "text" else []
        self.word_ids: Tensor | None = None
        self.image_ids = frame.index.to_numpy()
        self.people, self.pids = np.unique(frame["pid"].to_numpy(), return_inverse=True)
        self.image_rows = np.array([pixels.index[path] for path in frame["image"]])
        self.sketch_rows = [np.array([pixels.index[path] for path in paths]) for paths in frame["sketch"]]
        if "sketch" in parts and not said and data.sketch_of == "person":
            self._visit_the_more_numerous()
        self.set_epoch(0)

    @property
    def num_classes(self) -> int:
        return len(self.people)

    def __len__(self) -> int:
        return len(self.pids)

    def tokenize(self, tokenize) -> None:
        """Turns all captions or dialogues into ids once, with a function of a list of them."""
        if self.said:  # (items, L), below them the back-translations
            self.word_ids = tokenize(self.words + self.other_words)

    def set_epoch(self, epoch: int) -> None:
        """Draws the partners of this epoch."""
        rng = np.random.default_rng((self.seed, epoch, 1))
        self._images = self.image_rows
        if self.image_rows.dtype == object:
            self._images = _one_each(self.image_rows, rng)
        if "sketch" in self.parts:
            self._sketches = _one_each(self.sketch_rows, rng)
        self._said = np.arange(len(self))
        if self.other_words:
            self._said = self._said + len(self) * (rng.random(len(self)) < self.back_translation)

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        """A batch: uint8 images and sketches (B, 3, H, W), ids (B, L), pids (B,) from 0, image_ids (B,)."""
        batch = {
            "images": self.pixels[self._images[items]],
            "pids": torch.as_tensor(self.pids[items]),
            "image_ids": torch.as_tensor(self.image_ids[items]),
        }
        if "sketch" in self.parts:
            batch["sketch"] = self.pixels[self._sketches[items]]
        if self.said:
            batch[self.said] = self.word_ids[self._said[items]]
        return batch

    def order(self, epoch: int, sampler: str) -> np.ndarray:
        """The items of an epoch in the order they are served, (N,)."""
        rng = np.random.default_rng((self.seed, epoch, 0))
        order = rng.permutation(len(self))
        if sampler == "random":
            return order
        if sampler != "identity":
            raise ConfigError(f"sampler should be 'random' or 'identity' and got {sampler!r}.")
        order = order[np.argsort(self.pids[order], kind="stable")]  # people together, their pictures shuffled
        place = np.arange(len(order)) - np.searchsorted(self.pids[order], self.pids[order])
        key = self.pids[order] * (len(order) + 1) + place // PER_PERSON
        _, group = np.unique(key, return_inverse=True)
        return order[np.argsort(rng.permutation(group.max() + 1)[group], kind="stable")]

    def batches(
        self,
        epoch: int,
        batch_size: int,
        *,
        sampler: str = "random",
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        skip: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """The batches of one process of `world`, from number `skip` on.

        `batch_size` counts the items of all processes together, and the shares of all processes, in order, are the
        batch that one process alone would get. Each gets as many items, so a last batch that cannot be shared out
        equally loses the few that are over.
        """
        self.set_epoch(epoch)
        order = self.order(epoch, sampler)
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        parts = parts[skip : self.steps(batch_size, drop_last, world)]
        shares = [np.split(part[: len(part) // world * world], world)[rank] for part in parts]
        pin = torch.cuda.is_available()
        return iter(DataLoader(self, batch_sampler=shares, num_workers=workers, collate_fn=_as_is, pin_memory=pin))

    def steps(self, batch_size: int, drop_last: bool, world: int = 1) -> int:
        """Batches an epoch; an epoch shorter than one batch is one batch, a rest below two items a process none.

        Raises DataError for less than an item a process.
        """
        if len(self) < world:
            raise DataError(f"{len(self)} training items cannot be shared by {world} processes; expected one each.")
        whole, rest = divmod(len(self), batch_size)
        return max(whole, 1) if drop_last or rest < 2 * world else whole + 1

    def _visit_the_more_numerous(self) -> None:
        """Items become sketches where there are more of them than photos, and the photo is what is drawn."""
        photos, owners = self.image_rows, self.pids
        sketches, first = np.unique(np.concatenate(self.sketch_rows), return_index=True)
        if len(sketches) <= len(photos):
            return
        lengths = [len(rows) for rows in self.sketch_rows]
        source = np.repeat(np.arange(len(photos)), lengths)[first]
        of_person = [photos[owners == person] for person in range(self.num_classes)]
        self.pids, self.image_ids = owners[source], self.image_ids[source]
        self.image_rows = np.fromiter((of_person[person] for person in self.pids), dtype=object, count=len(sketches))
        self.sketch_rows = [np.array([row]) for row in sketches]


def _one_each(choices: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(len(choices))
    return np.array([rows[int(draw * len(rows))] for rows, draw in zip(choices, draws, strict=True)])


def _as_is(batch):
    return batch
