"""The figures of the workbook: one call, one matplotlib Figure that is understood without the code."""

from reidlib.viz.attention import attention_on_picture, patches_and_words, selected_patches, words
from reidlib.viz.curves import (
    forest,
    hardest_attributes,
    recall_curves,
    reliability_curves,
    round_curves,
    training_curves,
)
from reidlib.viz.forces import loss_forces
from reidlib.viz.maps import embedding_map
from reidlib.viz.rankings import (
    compare_methods,
    contact_sheet,
    dialogue_ranking,
    easy_median_hard,
    ranked_list,
    ranked_lists,
)

__all__ = [
    "attention_on_picture",
    "compare_methods",
    "contact_sheet",
    "dialogue_ranking",
    "easy_median_hard",
    "embedding_map",
    "forest",
    "hardest_attributes",
    "loss_forces",
    "patches_and_words",
    "ranked_list",
    "ranked_lists",
    "recall_curves",
    "reliability_curves",
    "round_curves",
    "selected_patches",
    "training_curves",
    "words",
]
