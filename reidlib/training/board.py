"""A training's curves in TensorBoard; the JSON lines in its folder stay the truth."""

from collections.abc import Callable
from pathlib import Path

from reidlib.errors import ReidError


def tensorboard(folder: Path) -> Callable[[dict], None]:
    """For `fit(..., log=tensorboard(folder))`: writes every number of a row over its epoch.

    `tensorboard --logdir outputs` shows the curves of all runs that wrote below it. Raises ReidError where the package
    is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ReidError('Curves in TensorBoard need `pip install "reidlib[board]"`.') from error
    writer = SummaryWriter(str(folder))

    def log(row: dict) -> None:
        for name, value in row.items():
            if name != "epoch" and not isinstance(value, bool | str):
                writer.add_scalar(name.replace(" ", "/", 1), value, row["epoch"])
        writer.flush()

    return log
