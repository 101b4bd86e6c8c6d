"""One walk finds the pictures of a folder, whatever else lies there."""

import os

import pytest

from reidlib.data import check, find_pictures, load
from reidlib.data.images import open_image
from reidlib.errors import DataError
from reidlib.retrieval import encode_folder
from reidlib.tests.attribute_model import AttributeModel
from reidlib.tests.test_readers import draw


def test_odd_but_legal_names_are_found_and_hidden_ones_left_out(tmp_path):
    draw(tmp_path, "9:30.png", "a b/été.JPG", "x.png/y.webp", ".hidden/x.jpg", "a b/.y.jpg")
    (tmp_path / "notes.txt").touch()
    assert find_pictures(tmp_path) == (["9:30.png", "a b/été.JPG", "x.png/y.webp"], [])
    assert check(load("folder", tmp_path)).ok
    gallery = encode_folder(AttributeModel(), tmp_path, tmp_path / "index")
    assert [gallery.image(row) for row in range(len(gallery))] == load("folder", tmp_path).table["image"].tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (b"a\nb.png", r"'a\\nb.png' under .* has a line break"),
        ("a\u2028b.png".encode(), r"'a\\u2028b.png' under .* has a line break"),
        (b"caf\xe9.png", r"'caf\\udce9.png' under .* is not UTF-8"),
        (b"a\\b.png", "has a backslash"),
    ],
)
def test_names_that_cannot_be_repeated_are_told_in_a_sentence(tmp_path, name, says):
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").rename(tmp_path / os.fsdecode(name))
    with pytest.warns(UserWarning, match=says):
        data = load("folder", tmp_path)
    assert data.table["image"].tolist() == ["a.png"]
    (problem,) = check(data).problems
    problem.encode()
    assert "\n" not in problem and "left out" in problem
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="picture that can be used.*" + says):
        load("folder", tmp_path)


def test_links_count_as_what_they_lead_to(tmp_path):
    draw(tmp_path, "real/1.png", "real/deep/2.png", "inside/3.png")
    root = tmp_path / "inside"
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "again").symlink_to(root)
    (tmp_path / "real/deep/up").symlink_to(tmp_path / "real")
    (root / "4.png").symlink_to(tmp_path / "real/1.png")
    (root / "5.png").symlink_to(tmp_path / "none")
    (root / "6.png").symlink_to(root / "6.png")
    found, faults = find_pictures(root)
    assert found == ["3.png", "4.png", "linked/1.png", "linked/deep/2.png"]
    assert len(faults) == 2 and all("is a link to nothing" in fault for fault in faults)


def test_pipes_and_folders_are_no_pictures(tmp_path):
    draw(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    assert find_pictures(tmp_path) == (["a.png"], [])
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=f"{name} is a folder, a pipe or a device"):
            open_image(tmp_path / name)


def test_a_folder_that_may_not_be_listed_or_is_none(tmp_path):
    (fault,) = find_pictures(tmp_path / "none")[1]
    assert "cannot be listed (No such file or directory)" in fault
    with pytest.raises(DataError, match="'folder' needs root, a folder of pictures; .*none is not there"):
        load("folder", tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file"):
        load("folder", tmp_path / "file")
