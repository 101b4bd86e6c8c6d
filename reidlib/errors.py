"""The errors a user may see: one sentence that names the file, record or field and says what was expected."""


class ReidError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


class DataError(ReidError):
    """A data file, record or picture is not what was expected."""


class ConfigError(ReidError):
    """A parameter has an unknown name, a wrong type or an impossible value."""


class CheckpointError(ReidError):
    """A checkpoint is missing, damaged, or belongs to something else."""
