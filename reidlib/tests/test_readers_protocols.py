"""Data sets with queries of their own: each mode, round or composed query reads as `Query`s with the right people."""

import pytest

from reidlib.data import load
from reidlib.errors import DataError
from reidlib.query import OPENING
from reidlib.tests.test_readers import draw, write


def orbench(root, **modes):
    train = [{"id": p, "file_path": f"vis/{p:04d}/1.jpg", "caption": f"person {p}"} for p in (1, 2)]
    write(root / "train_annos.json", train)
    write(root / "test_gallery_and_queries.json", {"RGB_GALLERY": [[3, "vis/0003/1.jpg"]], **modes})
    draw(root, *(f"vis/{p:04d}/1.jpg" for p in (1, 2, 3)), "sk/0001/1.jpg", "cp/0001/2.jpg", "sk/0003/1.jpg")


def test_orbench_s_modes_in_any_order(tmp_path):
    paths = {"CP": "cp/0003/1.jpg", "SK": "sk/0003/1.jpg", "NIR": "nir/0003/1.jpg", "TEXT": "a man"}
    modes = ("TEXT", "SK+NIR", "NIR_TEXT_CP", "CP+TEXT+SK")
    orbench(tmp_path, **{m: [[3, *(paths[p] for p in m.replace("_", "+").split("+"))]] * 2 for m in modes})
    data = load("orbench", tmp_path)
    train = data.table.set_index("image")
    assert train["sketch"]["vis/0001/1.jpg"] == ["cp/0001/2.jpg", "sk/0001/1.jpg"]
    assert train["text"]["vis/0002/1.jpg"] == ["person 2"] and train["sketch"]["vis/0002/1.jpg"] == []
    assert data.split("test")[["pid", "image"]].values.tolist() == [[3, "vis/0003/1.jpg"]]
    parts = {mode: [query.parts for query in asked.queries] for mode, asked in data.protocol.items()}
    assert parts == {
        "TEXT": [("text",)] * 2,
        "SK+NIR": [("sketch", "photo")] * 2,
        "NIR_TEXT_CP": [("text", "sketch", "photo")] * 2,
        "CP+TEXT+SK": [("text", "sketch"), ("sketch",)] * 2,
    }
    pooled = data.protocol["CP+TEXT+SK"]
    assert pooled.questions == (0, 0, 1, 1) and pooled.pids == (3,) * 4
    assert [query.sketch for query in pooled.queries] == ["sk/0003/1.jpg", "cp/0003/1.jpg"] * 2
    assert data.protocol["TEXT"].questions is None


@pytest.mark.parametrize(
    ("modes", "says"),
    [
        ({"RGB": [[3, "x.jpg"]]}, "modes of NIR, CP, SK and TEXT, found 'RGB'"),
        ({"SK+SK": [[3, "x.jpg", "y.jpg"]]}, "modes of .*, found 'SK.SK'"),
        ({"SK": [[3]]}, "SK, record 0 .*a person and 1 item"),
        ({"SK": [[3, "../x.jpg"]]}, "SK, record 0 .*leaves its folder"),
        ({"TEXT": [[3, ""]]}, "TEXT, record 0 .*words"),
        ({"TEXT": [["3", "a man"]]}, "TEXT, record 0 .*'id'"),
        ({"TEXT": [3]}, "TEXT, record 0 .*a list"),
        ({"TEXT": 3}, "TEXT: expected a list"),
    ],
)
def test_wrong_orbench_queries(tmp_path, modes, says):
    orbench(tmp_path, **modes)
    with pytest.raises(DataError, match=f"test_gallery_and_queries.json(, |: expected ){says}"):
        load("orbench", tmp_path)


def interactive(root, **of_test):
    told = {"initial_description": "a man", "fine-grained_description": "a man in red", "captions": ["a tall man"]}
    asked = {"questions": ["hat?"] * 5, "answers": ["no", "no", "none", "n", "no"]}
    records = [
        {"split": split, "file_path": f"CUHK-PEDES/imgs/{n}.png", "id": n, **told, **more}
        for n, (split, more) in enumerate([("train", asked), ("other", {}), ("test", of_test)])
    ]
    write(root / "Interactive-PEDES_interactive_annos.json", records)
    draw(root, *(record["file_path"] for record in records))
    return asked


def test_interactive_pedes_asks_round_by_round(tmp_path):
    asked = interactive(tmp_path)
    data = load("interactive-pedes", tmp_path)
    turns = list(zip(asked["questions"], asked["answers"], strict=True))
    assert data.table["split"].tolist() == ["train", "val", "test"]
    assert data.table["turns"].tolist() == [[[(OPENING, "a man"), *turns]], [], []]
    assert list(data.protocol) == ["round 0"] and data.protocol["round 0"].queries[0].parts == ("text",)
    assert "answer 0 of the protocol's 5 rounds" in data.notes[0]
    interactive(tmp_path, **asked)
    data = load("interactive-pedes", tmp_path)
    assert [len(data.protocol[f"round {n}"].queries[0].turns) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert data.protocol["round 5"].pids == [2] and not data.notes
    with pytest.raises(DataError, match="record 2 .*a question for each answer"):
        interactive(tmp_path, questions=["hat?"], answers=["no", "no"])
        load("interactive-pedes", tmp_path)


def test_itcpr_asks_with_a_photo_and_words(tmp_path):
    query = {"file_path": "a/1.png", "datasets": "PRCC", "person_id": 5, "instance_id": 8, "caption": "now in red"}
    gallery = [{"file_path": "PRCC/b/1.png", "datasets": "PRCC", "instance_id": 8}, {"file_path": "LAST/c.png"}]
    write(tmp_path / "query.json", [query])
    write(tmp_path / "gallery.json", [gallery[0], gallery[1] | {"instance_id": -1}])
    draw(tmp_path, "PRCC/a/1.png", "PRCC/b/1.png", "LAST/c.png")
    data = load("itcpr", tmp_path)
    assert data.table[["pid", "image"]].values.tolist() == [[8, "PRCC/b/1.png"], [-1, "LAST/c.png"]]
    (asked,) = data.protocol.values()
    assert (asked.queries[0].photo, asked.queries[0].text, asked.pids) == ("PRCC/a/1.png", "now in red", (8,))


def test_luperson_joins_its_files_and_leaves_faulty_sentences_out(tmp_path):
    write(tmp_path / "Ts-qwen.json", {"a/1.jpg": "a man", "a/2.jpg": "<person> in red"})
    write(tmp_path / "Td-shikra.json", {"b/1.jpg": "a tall man"})
    data = load("luperson-mllm", tmp_path, pictures=False)
    train = data.table.sort_values("image")
    assert sorted(map(sorted, train["text"])) == [[], ["a man", "a tall man"]]
    assert train["pid"].nunique() == 2 and "faulty sentences left out: 1" in data.found
    write(tmp_path / "Td-qwen.json", [])
    with pytest.raises(DataError, match="Td-qwen.json: expected an object"):
        load("luperson-mllm", tmp_path, pictures=False)


def test_a_list_of_the_usual_records_by_any_name(tmp_path):
    records = [{"split": "test", "id": 1, "file_path": "images/1.jpg", "captions": ["a man", "in red"]}]
    write(tmp_path / "uf" / "annotations.json", records)
    assert load("ufine6926", tmp_path / "uf", pictures=False).table["text"].tolist() == [["a man", "in red"]]
    synth = [
        {"id": n, "file_path": f"Part1/{n}/1.jpg", "captions": ["a man"], "attributes": ["man, red"]} for n in (1, 2)
    ]
    write(tmp_path / "synth" / "synthpedes_dataset.json", synth)
    assert sorted(load("synth-pedes", tmp_path / "synth", pictures=False).table["split"]) == ["train", "val"]


def test_no_toy_twin_is_said_as_an_unknown_name():
    with pytest.raises(Exception, match="There is no data set 'toy/itcpr'"):
        load("toy/itcpr")
