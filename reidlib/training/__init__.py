"""Training: one `fit` for every method, with its schedules and processes."""

from reidlib.training.board import tensorboard
from reidlib.training.fit import fit

__all__ = ["fit", "tensorboard"]
