"""Whether every figure a run saved stands in its executed notebook: python -m reidlib.tests.figures OUTPUTS"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import nbformat


def unseen(outputs: Path) -> list[str]:
    """A sentence for each run under `outputs` whose executed notebook shows fewer pictures than it saved.

    Figures that an earlier execution left in the folder do not count.
    """
    found = []
    for executed in sorted(outputs.glob("*/executed.ipynb")):
        notebook = nbformat.read(executed, as_version=4)
        begun = datetime.fromisoformat(notebook.metadata.papermill.start_time)
        begun = (begun if begun.tzinfo else begun.replace(tzinfo=UTC)).timestamp()
        outs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        shown = sum("image/png" in out.get("data", {}) for out in outs)
        saved = sum(figure.stat().st_mtime >= begun for figure in executed.parent.glob("figures/*.png"))
        if shown < saved:
            found.append(f"{executed} shows {shown} pictures; expected the {saved} in its figures/ at least.")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(unseen(Path(sys.argv[1]))) or 0)
