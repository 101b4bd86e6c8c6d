"""reidlib: the thin layer under the person-retrieval workbook."""

__version__ = "0.1.0"
