"""A small drawn world of pedestrians that stands in for the data sets nobody may pass on, in their own file layouts."""

from reidlib.data.toy.pretraining import pretraining_pairs
from reidlib.data.toy.write import VERSION, make

__all__ = ["VERSION", "make", "pretraining_pairs"]
