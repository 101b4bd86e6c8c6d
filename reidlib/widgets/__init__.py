"""The search panel for notebooks and the app; it shows a query session and calls it, and decides nothing."""

from reidlib.widgets.panel import SearchPanel
from reidlib.widgets.sketchpad import SketchPad

__all__ = ["SearchPanel", "SketchPad"]
