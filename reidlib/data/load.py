"""Data sets by name: where each is expected, which reader reads it, and what a user who lacks it should do."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from reidlib.data.folders import read_folder, read_market, read_pku
from reidlib.data.protocols import read_interactive, read_itcpr, read_luperson, read_orbench
from reidlib.data.records import TRI_PARTS, parse_json, read_mals, read_records, read_text, read_tri
from reidlib.data.table import SPLITS, PersonData, Read, absent, counts, first_faults, join
from reidlib.errors import ConfigError, DataError, nearest
from reidlib.paths import data_dir


class Source(NamedTuple):
    folder: str
    read: Callable[[Path, bool, int], Read]
    files: str
    ask: str
    trials: int = 1  # random splits over which its protocol averages
    toy: bool = True  # whether the toy world holds a stand-in


REID_FILES = "(or train_reid.json, val_reid.json, test_reid.json) and imgs/"
SOURCES = {
    "cuhk-pedes": Source(
        "CUHK-PEDES",
        read_records,
        f"reid_raw.json {REID_FILES}",
        "github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
    ),
    "icfg-pedes": Source("ICFG-PEDES", read_records, f"ICFG-PEDES.json {REID_FILES}", "github.com/zifyloo/SSAN"),
    "rstpreid": Source(
        "RSTPReid", read_records, f"data_captions.json {REID_FILES}", "github.com/NjtechCVLab/RSTPReid-Dataset"
    ),
    "tri-pedes": Source(
        "Tri-PEDES",
        read_tri,
        f"the folders {', '.join(TRI_PARTS)}, with imgs-sketch/ beside imgs/ in each for sketches",
        "github.com/ccq195/UNIReID (sketches)",
    ),
    "chatpedes": Source(
        "ChatPedes", read_records, "train_reid.json, test_reid.json and imgs/", "github.com/Flame-Chasers/DiaNA"
    ),
    "mals": Source(
        "MALS", read_mals, "JSON files of image, image_id, caption, and the pictures", "github.com/Shuyu-XJTU/APTM"
    ),
    "pku-sketch": Source(
        "PKU-Sketch",
        read_pku,
        "photo/, sketch/, idx/ and, for captions, TriReID.txt",
        "pkuml.org (PKU Sketch Re-ID)",
        10,
    ),
    "market-sketch-1k": Source(
        "Market-Sketch-1K",
        read_market,
        "photo/{train,query}/, sketch/{A..F}/{train,query}/ and, for captions, market_attribute.mat",
        "github.com/Lin-Kayla/subjectivity-sketch-reid",
    ),
    "orbench": Source(
        "ORBench",
        read_orbench,
        "train_annos.json, test_gallery_and_queries.json, vis/, nir/, cp/ and sk/",
        "github.com/Zplusdragon/ReID5o_ORBench",
    ),
    "interactive-pedes": Source(
        "Interactive-PEDES",
        read_interactive,
        "Interactive-PEDES_interactive_annos.json, CUHK-PEDES/imgs/ and ICFG-PEDES/imgs/",
        "huggingface.co/datasets/XLearning-SCU/Interactive-PEDES-v1",
    ),
    "ufine6926": Source(
        "UFine6926", read_records, "its JSON file and images/", "github.com/Zplusdragon/UFineBench", toy=False
    ),
    "synth-pedes": Source(
        "SYNTH-PEDES",
        read_records,
        "synthpedes_dataset.json and Part1/ to Part11/",
        "github.com/Zplusdragon/PLIP",
        toy=False,
    ),
    "luperson-mllm": Source(
        "LUPerson-MLLM",
        read_luperson,
        "Ts-qwen.json and its kin, and the pictures",
        "huggingface.co/datasets/TwT-6/MLLM4Text-ReID",
        toy=False,
    ),
    "itcpr": Source(
        "ITCPR",
        read_itcpr,
        "query.json, gallery.json, Celeb-reID/, PRCC/ and LAST/",
        "github.com/Delong-liu-bupt/Composed_Person_Retrieval",
        toy=False,
    ),
}
names = ("toy", *SOURCES, "folder")
toys = ("toy", *(f"toy/{name}" for name, source in SOURCES.items() if source.toy))


def load(name: str, root: Path | str | None = None, *, pictures: bool = True, trial: int = 1) -> PersonData:
    """Reads the data set `name` (one of `names`, or "toy/<name>" for its drawn stand-in) into one table.

    Several names with + between them are joined for training; val and test are then those of the first.
    `root` is the data set's folder, by default its own under the data folder; for the toys it is the folder that holds
    all of them, drawn on first use. `pictures=False` reads annotations without the pictures being there. `trial`
    chooses among PKU-Sketch's ten splits. Where there is no val split, a tenth of the training identities (seeded, at
    most 1,000) is held out as val. Raises ConfigError for a wrong argument, DataError for anything wrong on disk.
    """
    if "+" in name:
        return join([load(part, root, pictures=pictures, trial=trial) for part in name.split("+")])
    if name not in (known := [*names, *toys[1:]]):
        raise ConfigError(f"There is no data set {name!r}; {nearest(str(name), known)}.")
    if type(trial) is not int or not 1 <= trial <= trials(name):
        raise ConfigError(f"{name!r} has {trials(name)} trial(s); trial was {trial!r}.")
    base = locate(name, root)
    if name == "folder":
        return _finish(name, base, read_folder(base, pictures), pictures)
    source = _source(name)
    read = source.read(base, pictures, trial)
    if name == "toy":
        _join_toy(read.table, base, pictures)
    return _finish(name, base, read, pictures)


def locate(name: str, root: Path | str | None = None) -> Path:
    """The folder of a data set, as `load` finds it. The DataError where there is none says what belongs there and whom
    to ask for it."""
    if name == "folder":
        return _folder(root)
    source = _source(name)
    if name.startswith("toy"):
        base = _toy_world(root) / source.folder
    else:
        base = data_dir() / source.folder if root is None else Path(root)
    if source.read is read_tri and not base.is_dir() and (base.parent / TRI_PARTS[0]).is_dir():
        base = base.parent
    if not base.is_dir():
        raise DataError(f"{name} is not at {base}; put {source.files} there, and ask for the data set at {source.ask}.")
    return base


def _source(name: str) -> Source:
    return SOURCES["cuhk-pedes" if name == "toy" else name.removeprefix("toy/")]


def trials(name: str) -> int:
    """The number of random splits over which the protocol of `name` averages (`load(..., trial=1..trials)`)."""
    source = SOURCES.get(name.removeprefix("toy/"))
    return source.trials if source else 1


def _folder(root: Path | str | None) -> Path:
    if root is None or not Path(root).is_dir():
        found = "none was given" if root is None else f"{root} is {'a file' if Path(root).exists() else 'not there'}"
        raise DataError(f"'folder' needs root, a folder of pictures; {found}.")
    return Path(root)


def _finish(name: str, root: Path, read: Read, pictures: bool) -> PersonData:
    table, held_out = read.table, _hold_out(read.table)
    parts = [f"{(table['split'] == split).sum():,} {split}" for split in SPLITS if (table["split"] == split).any()]
    number = counts(table, read.sketch_of)
    people = number.pop("identities")
    found = f"{read.layout}: {number.pop('pictures'):,} pictures ({', '.join(parts)}) of {people:,} people"
    found += "".join(f", {count:,} {column}" for column, count in number.items() if count)
    if held_out:
        found += f"; no val split, so a fixed choice of {held_out:,} training identities is held out as val"
    if pictures:
        missing = absent(root, table["image"])
        if len(missing) == len(table):
            raise DataError(f"{root}: expected pictures such as {missing[0]}, found none of the {len(table):,} named.")
        found += f"; pictures missing: {len(missing):,}, such as {missing[0]}" if missing else ""
    faults = list(read.faults)
    if faults:
        warnings.warn(f"{name} at {root}: {first_faults(faults)}", stacklevel=3)
    protocol = dict(read.protocol)
    return PersonData(name, root, table, found + ".", read.sketch_of, faults, list(read.notes), protocol)


def _hold_out(table: pd.DataFrame) -> int:
    """Turns a seeded tenth of the training identities into val where a table has none; how many that were."""
    pids = np.unique(table.loc[table["split"] == "train", "pid"])
    if (table["split"] == "val").any() or len(pids) < 2:
        return 0
    chosen = np.random.default_rng(0).choice(pids, min(max(len(pids) // 10, 1), 1000), replace=False)
    table.loc[(table["split"] == "train") & table["pid"].isin(chosen), "split"] = "val"
    return len(chosen)


def _toy_world(root: Path | str | None) -> Path:
    from reidlib.toyworld import make

    world = data_dir() / "toy" if root is None else Path(root)
    if world.exists() and not world.is_dir():
        raise DataError(f"{world} is a file; expected a folder that holds the toy world, or a name for one.")
    if root is None or not world.is_dir():  # a world that the caller made, of another size perhaps, is read as it is
        make(world)
    return world


def _join_toy(table: pd.DataFrame, base: Path, pictures: bool) -> None:
    """Adds ChatPedes' dialogues and the attributes that were drawn to the rows of the toy CUHK-PEDES."""
    chats = read_records(base.parent / "ChatPedes", pictures).table.set_index("image")["turns"].to_dict()
    table["turns"] = [chats.get(image, []) for image in table["image"]]
    attributes = parse_json(read_text(base / "attributes.json"), str(base / "attributes.json"))
    table["attributes"] = [attributes.get(image.removeprefix("imgs/"), {}) for image in table["image"]]
