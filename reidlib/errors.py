"""The errors a user may see: one sentence that names the file, record or field and says what was expected."""

import difflib
from collections.abc import Iterable


class ReidError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


class DataError(ReidError):
    """A data file, record or picture is not what was expected."""


class UnreadableError(DataError):
    """Some of many pictures cannot be read; `faults` has a sentence on each, by its path."""

    def __init__(self, faults: dict[str, str], of: int):
        first = " ".join(list(faults.values())[:3])
        super().__init__(f"{len(faults):,} of {of:,} pictures cannot be read; the first: {first}")
        self.faults, self.of = faults, of

    def __reduce__(self):  # from a process to the one that started it
        return UnreadableError, (self.faults, self.of)


class ConfigError(ReidError):
    """A parameter has an unknown name, a wrong type or an impossible value."""


class CheckpointError(ReidError):
    """A checkpoint is missing, damaged, or belongs to something else."""


def nearest(name: object, known: Iterable[str]) -> str:
    """What to say of a name that is not known: `the nearest is 'x'`, or `known are a, b, c` where none is like it."""
    known = list(known)
    close = [choice for choice in known if len(str(name)) > 2 and str(name) in choice]
    close += difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if not close:
        return f"known are {', '.join(sorted(known))}" if known else "there are none"
    return f"the nearest is {close[0]!r}"
