"""A small drawn world of pedestrians that stands in for the data sets nobody may pass on, in their own file layouts.

A package by itself: it knows nothing of reidlib but how errors read. From below upwards:

    people  shots        who there is, how a camera meets them and what it then sees
    words  language      what a witness says of that: captions and dialogues
    shapes  body  clothes  figure    the dressed person as flat parts
    scenes  draw  sketch the parts as a photo before a backdrop, or as a drawing from memory
    layouts  world       data sets in their own files; the whole world, written at once or not at all
    pretraining          pictures and captions of people who live in no world, for the toy backbones
"""

from reidlib.toyworld.pretraining import pretraining_pairs
from reidlib.toyworld.world import VERSION, make

__all__ = ["VERSION", "make", "pretraining_pairs"]
