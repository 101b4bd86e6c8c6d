"""Evaluation: who is found, at which rank, under which protocol."""

from reidlib.evaluation.encoding import Encoder
from reidlib.evaluation.metrics import Ranks, best_rank_integral, rank
from reidlib.evaluation.tasks import Task, Validation, evaluate, over_trials, protocol_tasks, tasks, validation

__all__ = [
    "Encoder",
    "Ranks",
    "Task",
    "Validation",
    "best_rank_integral",
    "evaluate",
    "over_trials",
    "protocol_tasks",
    "rank",
    "tasks",
    "validation",
]
