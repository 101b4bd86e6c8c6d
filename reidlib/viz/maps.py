"""Embeddings on a plane."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import CSS4_COLORS
from matplotlib.figure import Figure
from torch import Tensor

from reidlib.viz.style import MARKERS, figure


@figure
def embedding_map(embeddings: Tensor, labels: Sequence[str], name: str, title: str = "") -> Figure:
    """Embeddings (N, D) on their first two principal components, coloured by an attribute.

    `labels` are the attribute's values, `name` the attribute. Values that name a colour ("red") are drawn in it.
    """
    centred = embeddings.float() - embeddings.float().mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the factorisation starts from a random guess
        _, lengths, axes = torch.pca_lowrank(centred, q=min(6, *centred.shape), center=False)
    points = (centred @ axes[:, :2]).cpu().numpy()
    share = (lengths[:2] ** 2 / centred.square().sum() * 100).tolist()
    sheet, plane = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    for number, value in enumerate(sorted(set(labels))):
        mine = [label == value for label in labels]
        colour = value if value in CSS4_COLORS else f"C{number % 8}"
        style = {"color": colour, "edgecolor": "#444444", "linewidth": 0.5, "marker": MARKERS[number % 8]}
        plane.scatter(*points[mine].T, s=34, label=f"{value} ({sum(mine)})", **style)
    plane.set(
        xlabel=f"first principal component ({share[0]:.0f} % of the variance)",
        ylabel=f"second principal component ({share[1]:.0f} %)",
        title=title or f"{len(labels)} pictures by {name}",
    )
    plane.legend(title=name, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return sheet
