"""Person data sets as one table: `load` reads any known layout, `check` says whether what is on disk is whole."""

from reidlib.data.readers import load, names
from reidlib.data.table import PersonData, Report, check

__all__ = ["PersonData", "Report", "check", "load", "names"]
