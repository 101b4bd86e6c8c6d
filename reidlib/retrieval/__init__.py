"""Search in a gallery: the index, query sessions, what to ask, and a simulated witness to measure it with."""

from reidlib.retrieval.gallery import Gallery, encode_folder, encode_shard
from reidlib.retrieval.index import GalleryIndex
from reidlib.retrieval.policies import PolicyRun, bri, run_policy
from reidlib.retrieval.questions import DEFAULT_QUESTIONS, Question, QuestionBank, make_questions, questions_about
from reidlib.retrieval.session import QuerySession
from reidlib.retrieval.witness import Witness

__all__ = [
    "DEFAULT_QUESTIONS",
    "Gallery",
    "GalleryIndex",
    "PolicyRun",
    "QuerySession",
    "Question",
    "QuestionBank",
    "Witness",
    "bri",
    "encode_folder",
    "encode_shard",
    "make_questions",
    "questions_about",
    "run_policy",
]
