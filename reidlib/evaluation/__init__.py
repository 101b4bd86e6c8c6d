"""Evaluation: who is found, at which rank, under which protocol."""

from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, rank, top_k
from reidlib.evaluation.tasks import Task, Validation, evaluate, over_trials, tasks, validation

__all__ = ["Encoder", "Ranks", "Task", "Validation", "evaluate", "over_trials", "rank", "tasks", "top_k", "validation"]
