"""Evaluation: who is found, at which rank, under which protocol."""

from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, rank, top_k
from reidlib.evaluation.protocols import Task, evaluate, over_trials, tasks

__all__ = ["Encoder", "Ranks", "Task", "evaluate", "over_trials", "rank", "tasks", "top_k"]
