"""What a loss does to features: arrows against its gradient, on points in the plane."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reidlib.viz.style import STYLE, WIDTH, figure

COLOURS = STYLE["axes.prop_cycle"].by_key()["color"]


@figure
def loss_forces(
    losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    first: Tensor,
    second: Tensor,
    people: Sequence[int],
    kinds: tuple[str, str] = ("picture", "caption"),
    title: str = "What each loss pulls and pushes",
) -> Figure:
    """A panel a loss: points (N, 2) of two kinds, coloured by person, and the step that each is asked to take.

    A loss takes both sets of points and gives a scalar, which is printed with its name. Arrows point against its
    gradient; within a panel their lengths compare, between panels they do not.
    """
    side = min(WIDTH / len(losses), 3.3)
    sheet, _ = plt.subplots(1, len(losses), figsize=(side * len(losses), side + 0.7), layout="constrained")
    for panel, (name, loss) in zip(sheet.axes, losses.items(), strict=True):
        points = [kind.clone().requires_grad_() for kind in (first, second)]
        value = loss(*points)
        steps = [-gradient for gradient in torch.autograd.grad(value, points)]
        value = float(value.detach())
        longest = max(float(step.norm(dim=1).max()) for step in steps) or 1.0
        for kind, step, marker, label in zip((first, second), steps, "os", kinds, strict=True):
            colours = [COLOURS[person] for person in people]
            panel.scatter(*kind.T, c=colours, marker=marker, s=46, edgecolors="black", linewidths=0.6, zorder=3)
            panel.scatter([], [], c="white", marker=marker, edgecolors="black", label=label)
            scaled = 0.7 * step / longest
            panel.quiver(*kind.T, *scaled.T, color=colours, angles="xy", scale_units="xy", scale=1, width=0.012)
        panel.axhline(0, color="#bbbbbb", linewidth=0.8)
        panel.axvline(0, color="#bbbbbb", linewidth=0.8)
        reach = 1.15 * float(torch.cat([first, second]).abs().max()) + 0.2
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"{name} = {value:.2f}")
        panel.tick_params(labelbottom=False, labelleft=False, length=0)
    sheet.axes[0].legend(loc="lower left", fontsize=8)
    sheet.suptitle(title)
    return sheet
