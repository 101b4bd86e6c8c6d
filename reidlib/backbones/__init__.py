"""Towers that turn pictures and words into features, by name."""

from reidlib.backbones.clip import CLIP, Tokens, create_clip, trim

__all__ = ["CLIP", "Tokens", "create_clip", "trim"]
