"""Notebook panels over query sessions; they show and call, and decide nothing."""

from reidlib.widgets.chat import ChatSearch
from reidlib.widgets.sketch import SketchSearch
from reidlib.widgets.sketchpad import SketchPad

__all__ = ["ChatSearch", "SketchPad", "SketchSearch"]
