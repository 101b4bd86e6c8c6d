"""Learning-rate schedules, as a factor of each group's own rate."""

import math
from collections.abc import Callable

from reidlib.config import Config


def schedule(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor at optimiser step 0, 1, ...: a warm-up from `warmup_from` to 1, then the decay the config names.

    "linear" warm-up reaches 1 just after its last step, "linspace" at its last step (InteractReID), "log" grows as
    log(t + 1) / log(warm-up steps) (DeepSpeed, so DiaNA). The decays, over t in [0, 1] after the warm-up: "cosine"
    f + (1 - f)(1 + cos pi t) / 2 and "linear" f + (1 - f)(1 - t) with f = `end_factor`, "step" times `decay` at each
    milestone (in epochs), "constant". With `schedule_every="epoch"` the factor is that of the epoch's beginning.
    """
    by_epoch = config.schedule_every == "epoch"
    unit = 1 if by_epoch else steps_per_epoch
    total = config.epochs * unit
    warm = config.warmup_steps or round(config.warmup_epochs * unit)

    def factor(step: int) -> float:
        now = step // steps_per_epoch if by_epoch else step
        if now < warm:
            return _warm_up(now, warm, config)
        done = min((now - warm) / max(total - warm, 1), 1.0)
        if config.schedule == "cosine":
            return config.end_factor + (1 - config.end_factor) * (1 + math.cos(math.pi * done)) / 2
        if config.schedule == "linear":
            return config.end_factor + (1 - config.end_factor) * (1 - done)
        if config.schedule == "step":
            return config.decay ** sum(now >= milestone * unit for milestone in config.milestones)
        return 1.0

    return factor


def _warm_up(now: int, warm: int, config: Config) -> float:
    if config.warmup_shape == "log":
        return math.log(now + 1) / math.log(warm) if warm > 1 else 1.0
    share = now / max(warm - 1, 1) if config.warmup_shape == "linspace" else now / warm
    return config.warmup_from + (1 - config.warmup_from) * share
