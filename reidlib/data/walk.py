"""Finds the pictures below a folder: one rule for readers, galleries and checks."""

import os
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find_pictures(folder: Path | str) -> tuple[list[str], list[str]]:
    """All pictures below `folder`, as sorted paths relative to it, and a sentence on each that cannot be used.

    A picture is a file with one of `SUFFIXES`. Hidden files and folders are left out, and so is whatever is no file
    (a pipe, a device). Links count as what they lead to; a folder that is met twice counts once. What cannot be used:
    a folder that may not be listed, a link to nothing, and a path that holds a line break or a backslash or is not
    UTF-8, as records, messages and other systems could not repeat it.
    """
    root, found, faults, seen, todo = Path(folder), [], [], set(), [""]
    while todo:
        base = todo.pop()
        try:
            status = (root / base).stat()
            entries = sorted(os.scandir(root / base), key=lambda entry: entry.name)
        except OSError as error:
            faults.append(f"The folder {ascii(str(root / base))} cannot be listed ({error.strerror}); it is left out.")
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path, kind = f"{base}/{entry.name}" if base else entry.name, _kind(entry)
            if entry.name.startswith("."):
                continue
            if kind == "folder":
                todo.append(path)
            elif kind and path.lower().endswith(SUFFIXES):
                fault = _fault(path) or ("is a link to nothing" if kind == "lost" else "")
                if fault:
                    faults.append(f"The picture {ascii(path)} under {root} {fault}; it is left out.")
                else:
                    found.append(path)
    return sorted(found), sorted(faults)


def _kind(entry: os.DirEntry) -> str:
    """What an entry is or leads to: "folder", "file", "lost" for a link to nothing, "" for anything else."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "lost"
    return ""


def _fault(path: str) -> str:
    if path.splitlines() != [path]:
        return "has a line break in its path"
    if "\\" in path:
        return "has a backslash in its path"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "has a path that is not UTF-8"
    return ""
