"""Whether every figure a run saved stands in its executed notebook: python -m reidlib.tests.figures OUTPUTS"""

import sys
from pathlib import Path

import nbformat


def unseen(outputs: Path) -> list[str]:
    """A sentence for each run under `outputs` whose executed notebook shows fewer pictures than were saved."""
    found = []
    for executed in sorted(outputs.glob("*/executed.ipynb")):
        cells = nbformat.read(executed, as_version=4).cells
        shown = sum("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
        saved = len(list(executed.parent.glob("figures/*.png")))
        if shown < saved:
            found.append(f"{executed} shows {shown} pictures; expected the {saved} in its figures/ at least.")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(unseen(Path(sys.argv[1]))) or 0)
