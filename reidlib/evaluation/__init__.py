"""Evaluation: who is found, at which rank, under which protocol."""

from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, rank, top_k
from reidlib.evaluation.protocols import Task, evaluate, tasks

__all__ = ["Encoder", "Ranks", "Task", "evaluate", "rank", "tasks", "top_k"]
