"""Person data sets as one table: `load` reads any known layout, `check` says whether what is on disk is whole."""

from reidlib.data.check import Report, check
from reidlib.data.load import load, names, toys, trials
from reidlib.data.metadata import write_folder
from reidlib.data.table import PersonData
from reidlib.data.walk import find_pictures

__all__ = ["PersonData", "Report", "check", "find_pictures", "load", "names", "toys", "trials", "write_folder"]
