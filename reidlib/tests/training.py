"""`fit` from a data set, as the notebooks call it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from reidlib.config import Config
from reidlib.data import PersonData
from reidlib.data.batches import MixedBatches, TrainBatches, data_pixels
from reidlib.evaluation import Task, Validation, validation
from reidlib.methods.base import Method
from reidlib.training import fit


def train(
    model: Method, data: PersonData, config: Config, folder: Path, select: Sequence[Task] | None = None, **options
) -> Iterator[dict]:
    """select: the tasks that are measured after each epoch, instead of all that there are; [] for none."""
    pixels = data_pixels(data, model.preprocess)
    evaluate = validation(data, model, config, pixels) if select is None else Validation(tuple(select), pixels)
    batches = (MixedBatches if model.mixes else TrainBatches)(data, model, config, pixels)
    return fit(model, batches, config, folder, evaluate=evaluate if select != [] else None, **options)
