"""`python -m reidlib.toyworld FOLDER --seed 1`: draw a world of one's own, such as one held out, to `FOLDER`."""

import argparse
from pathlib import Path

from reidlib.toyworld.world import PEOPLE, make

parser = argparse.ArgumentParser(prog="python -m reidlib.toyworld", description="Draw a toy world.")
parser.add_argument("folder", type=Path, help="where to; empty, missing, or with a world in it already")
parser.add_argument("--people", type=int, default=PEOPLE, help="in training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="another one is another world (default: %(default)s)")
options = parser.parse_args()
print(f"The toy world is in {make(options.folder, options.people, options.seed)}")
