"""Training: one `fit` for every method, with its schedules and checkpoints."""

from reidlib.training.engine import fit

__all__ = ["fit"]
