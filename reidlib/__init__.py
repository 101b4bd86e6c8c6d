"""reidlib: the thin layer under the person-retrieval workbook."""
