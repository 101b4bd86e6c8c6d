"""Where tests write and where they find data: temporary folders, shared/ beside the checkout, tests/golden."""

import os
from pathlib import Path

import pytest

from reidlib.paths import CHECKOUT

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes to data/ or outputs/ of the checkout."""
    os.environ["REIDLIB_OUTPUTS"] = str(tmp_path_factory.mktemp("outputs"))
    os.environ["REIDLIB_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def toy_root(places: None) -> Path:
    """The toy world of forty people, 27 of whom train, drawn once: `load("toy", toy_root)`."""
    from reidlib import toyworld

    root = Path(os.environ["REIDLIB_DATA"], "toy")
    toyworld.make(root, people=27)
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real files that are not part of the project, where the machine has them."""
    folder = Path(os.environ.get("REIDLIB_SHARED", CHECKOUT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"there is no folder of shared files at {folder} (REIDLIB_SHARED names it)")
    return folder
