"""Data sets that come with the queries of their protocol: ORBench, Interactive-PEDES, ITCPR; and LUPerson-MLLM."""

import re
from collections import defaultdict
from pathlib import Path

from reidlib.data.records import (
    expect,
    get,
    id_of,
    parse_json,
    picture_of,
    place,
    read_text,
    rows_of,
    text_of,
    texts_of,
)
from reidlib.data.table import DISTRACTOR, SPLITS, Asked, Read, make_table
from reidlib.data.walk import find_pictures
from reidlib.errors import DataError

# What ORBench calls a kind of query, and the part of a `Query` that it is: infrared photos, and drawings in colour
# pencil and in pencil. NIR photos are asked with alone; a training picture is a photo by day.
MODALITIES = {"nir": "photo", "cp": "sketch", "sk": "sketch", "text": "text"}
ROUNDS = 5  # of questions and answers in Interactive-PEDES' protocol


def read_orbench(root: Path, pictures: bool, trial: int = 1) -> Read:
    """ORBench (ReID5o): `train_annos.json`, records of id, file_path and caption; `test_gallery_and_queries.json`.

    The second holds RGB_GALLERY, rows of person and path, and the queries of each mode, rows of person and an item for
    each part in the mode's name. Every mode becomes an entry of `protocol`. A query of two drawings (CP and SK) is two
    `Query`s whose embeddings are pooled, as a `Query` holds one.
    """
    from reidlib.query import Query  # it needs torch, which is slow to import

    drawings, faults = defaultdict(list), []
    for folder in ("cp", "sk") if pictures else ():
        found, unusable = find_pictures(root / folder) if (root / folder).is_dir() else ([], [])
        faults += unusable
        for path in found:
            drawings[path.split("/")[0].lstrip("0")].append(f"{folder}/{path}")

    def trained(record: dict) -> dict:
        pid, image = id_of(get(record, "id")), picture_of(get(record, "file_path"), root)
        text = [text_of(get(record, "caption"), "'caption'")]
        return {"pid": pid, "image": image, "split": "train", "text": text, "sketch": list(drawings[str(pid)])}

    train, test = root / "train_annos.json", root / "test_gallery_and_queries.json"
    rows = list(rows_of(parse_json(read_text(train), str(train)), str(train), trained))
    lists = parse_json(read_text(test), str(test))
    if not isinstance(lists, dict) or "RGB_GALLERY" not in lists:
        raise DataError(f"{test}: expected an object with RGB_GALLERY and a list of queries a mode.")

    def seen(row: list) -> dict:
        expect(len(row) == 2, "a person and a path", row)
        return {"pid": id_of(row[0]), "image": picture_of(row[1], root), "split": "test"}

    rows += rows_of(lists.pop("RGB_GALLERY"), f"{test}, RGB_GALLERY", seen, list)
    protocol = {}
    for mode, asked in lists.items():
        parts = re.findall("nir|cp|sk|text", mode.lower())
        if not parts or len(set(parts)) < len(parts):
            raise DataError(f"{test}: expected modes of NIR, CP, SK and TEXT, found {mode[:80]!r}.")

        def asks(row: list, parts: list[str] = parts) -> tuple[int, list[Query]]:
            expect(len(row) == 1 + len(parts), f"a person and {len(parts)} item(s)", row)
            items = dict(zip(parts, row[1:], strict=True))
            given = {
                MODALITIES[part]: text_of(item, "a text") if part == "text" else picture_of(item, root)
                for part, item in items.items()
            }
            more = [Query(sketch=picture_of(items["cp"], root))] if {"cp", "sk"} <= set(parts) else []
            return id_of(row[0]), [Query(**given | ({"sketch": picture_of(items["sk"], root)} if more else {})), *more]

        people = list(rows_of(asked, f"{test}, {mode}", asks, list))
        numbered = [(pid, query, number) for number, (pid, queries) in enumerate(people) for query in queries]
        if numbered:
            pids, queries, questions = zip(*numbered, strict=True)
            protocol[mode] = Asked(queries, pids, questions if len(queries) > len(people) else None)
    return Read(make_table(rows, str(root)), f"{train.name} and {test.name}", "person", faults, protocol=protocol)


def read_interactive(root: Path, pictures: bool, trial: int = 1) -> Read:
    """Interactive-PEDES (LLaVA-ReID): records of split, file_path, id, descriptions, captions, questions and answers.

    The first description opens the dialogue, questions and answers go on with it. Its protocol asks with the first
    description (round 0) and after each of five rounds; the rounds are there as far as the test records hold answers,
    else a simulated witness has to give them.
    """
    from reidlib.query import OPENING, Query

    asked: list[tuple[int, str, list[tuple[str, str]]]] = []

    def row(record: dict) -> dict:
        split = get(record, "split")
        split = split if split in SPLITS else "val"
        first = text_of(get(record, "initial_description"), "'initial_description'")
        questions, answers = record.get("questions") or [], record.get("answers") or []
        turns = []
        if answers:
            expect(isinstance(questions, list) and isinstance(answers, list), "lists of questions and answers", answers)
            expect(len(questions) == len(answers), "a question for each answer", len(questions))
            turns = list(zip(texts_of(questions, "'questions'"), texts_of(answers, "'answers'"), strict=True))
        pid = id_of(get(record, "id"))
        if split == "test":
            asked.append((pid, first, turns))
        row = {"pid": pid, "image": picture_of(get(record, "file_path"), root), "split": split}
        row["text"] = texts_of(get(record, "captions"), "'captions'")
        row["attributes"] = attributes.get(row["image"], {})
        return row | ({"turns": [[(OPENING, first), *turns]]} if turns else {})

    beside = root / "attributes.json"
    attributes = parse_json(read_text(beside), str(beside)) if beside.is_file() else {}
    file = root / "Interactive-PEDES_interactive_annos.json"
    rows = list(rows_of(parse_json(read_text(file), str(file)), str(file), row))
    pids = [pid for pid, _, _ in asked]
    told = min((len(turns) for _, _, turns in asked), default=-1)
    protocol = {
        f"round {n}": Asked([Query(text=first, turns=turns[:n]) for _, first, turns in asked], pids)
        for n in range(min(told, ROUNDS) + 1)
    }
    read = place(rows, root, pictures, file.name)
    if 0 <= told < ROUNDS:
        note = (
            f"The test records answer {told} of the protocol's {ROUNDS} rounds; a simulated witness can give the rest."
        )
        read = read._replace(notes=[note])
    return read._replace(protocol=protocol)


def read_itcpr(root: Path, pictures: bool, trial: int = 1) -> Read:
    """ITCPR, a test of composed search: `query.json` (a photo and how the person sought differs) and `gallery.json`.

    An instance (a person in certain clothes) is what is looked for, so it is the pid here; a gallery picture of
    instance -1 is a distractor.
    """
    from reidlib.query import Query

    def picture(record: dict) -> tuple[str, int]:
        path, instance = picture_of(get(record, "file_path"), root), get(record, "instance_id")
        folder = record.get("datasets")
        if isinstance(folder, str) and path.split("/")[0] != folder and (root / folder).is_dir():
            path = picture_of(f"{folder}/{path}", root)
        return path, DISTRACTOR if instance == DISTRACTOR else id_of(instance)

    def seen(record: dict) -> dict:
        path, instance = picture(record)
        return {"pid": instance, "image": path, "split": "test"}

    def asks(record: dict) -> tuple[Query, int]:
        path, instance = picture(record)
        return Query(photo=path, text=text_of(get(record, "caption"), "'caption'")), instance

    query, gallery = root / "query.json", root / "gallery.json"
    rows = list(rows_of(parse_json(read_text(gallery), str(gallery)), str(gallery), seen))
    asked = list(rows_of(parse_json(read_text(query), str(query)), str(query), asks))
    protocol = {"photo + text": Asked(*zip(*asked, strict=True))} if asked else {}
    return Read(make_table(rows, str(gallery)), "query.json and gallery.json", protocol=protocol)


def read_luperson(root: Path, pictures: bool, trial: int = 1) -> Read:
    """LUPerson-MLLM: {picture: sentence} in Ts-qwen.json and its kin, joined by the pictures' base names.

    Each picture is an identity of its own. Sentences that hold `description]` or `<` are faulty and left out.
    """
    files = sorted(root.glob("T[sd]-*.json"))
    if not files:
        raise DataError(f"{root}: expected Ts-qwen.json, Td-qwen.json, Ts-shikra.json or Td-shikra.json, found none.")
    rows, left_out = {}, 0
    for file in files:
        told = parse_json(read_text(file), str(file))
        if not isinstance(told, dict):
            raise DataError(f"{file}: expected an object of pictures and their sentences.")
        for path, text in told.items():
            try:
                image, text = picture_of(path, root), text_of(text, "its sentence")
            except DataError as error:
                raise DataError(f"{file}, {path[:80]!r}: {error}") from None
            row = rows.setdefault(image.rpartition("/")[2], {"image": image, "split": "train", "text": []})
            faulty = "description]" in text or "<" in text
            left_out += faulty
            row["text"] += [] if faulty else [text]
    rows = [row | {"pid": pid} for pid, row in enumerate(rows.values())]
    layout = ", ".join(file.name for file in files) + (
        f" (faulty sentences left out: {left_out:,})" if left_out else ""
    )
    read = place(rows, root, pictures, files[0].name)
    return read._replace(layout=read.layout.replace(files[0].name, layout, 1))
