"""Search in a gallery: the index, query sessions, what to ask, and a simulated witness to measure it with.

A gallery larger than one machine is encoded by `reidlib.retrieval.cluster` and lives in a `reidlib.retrieval.store`.
"""

from reidlib.retrieval.gallery import Gallery, encode_folder
from reidlib.retrieval.index import GalleryIndex
from reidlib.retrieval.presence import Presence
from reidlib.retrieval.questions import DEFAULT_QUESTIONS, Question, QuestionBank, make_questions, questions_about
from reidlib.retrieval.session import Chip, QuerySession
from reidlib.retrieval.simulate import PolicyRun, Witness, bri, run_policy

__all__ = [
    "DEFAULT_QUESTIONS",
    "Chip",
    "Gallery",
    "GalleryIndex",
    "PolicyRun",
    "Presence",
    "QuerySession",
    "Question",
    "QuestionBank",
    "Witness",
    "bri",
    "encode_folder",
    "make_questions",
    "questions_about",
    "run_policy",
]
