"""Towers that turn pictures and words into features, by name or as a checkpoint describes them."""

from typing import Any

from torch import nn

from reidlib.backbones.clip import CLIP, Tokens, create_clip, trim
from reidlib.errors import CheckpointError
from reidlib.weights import fitting

__all__ = ["CLIP", "Tokens", "create_clip", "from_spec", "trim"]


def from_spec(spec: dict[str, Any]) -> nn.Module:
    """Towers with random weights from what their `spec` said when they were saved; nothing is fetched.

    Raises CheckpointError for a spec that no towers of this workbook have written.
    """
    from reidlib.backbones.bert import TextEncoder
    from reidlib.backbones.swin_llama import TransformerTowers
    from reidlib.backbones.turns import ClipTowers

    kinds = {"clip": CLIP, "text": TextEncoder, "clip-turns": ClipTowers, "transformers": TransformerTowers}
    if not isinstance(spec, dict) or spec.get("kind") not in kinds:
        raise CheckpointError(f"A checkpoint's towers should be one of {', '.join(kinds)}.")
    with fitting("A checkpoint's towers"):
        return kinds[spec["kind"]].from_spec(spec)
