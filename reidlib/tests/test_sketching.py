"""Sketches made from photos: where they go, that they repeat, resume and never lie half-written, and what they show."""

import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image

from reidlib.data import sketching
from reidlib.data.images import open_image
from reidlib.data.sketching import draw_sketch, make_sketches, sketch_path
from reidlib.errors import DataError


def person(shade: int = 40) -> Image.Image:
    """A dark figure on light ground, 64 x 128."""
    photo = np.full((128, 64, 3), 200, np.uint8)
    photo[20:110, 20:44] = shade
    return Image.fromarray(photo)


@pytest.fixture
def world(tmp_path):
    """A function that fills `imgs/` with so many photos and returns the root and their paths."""

    def fill(count: int):
        (tmp_path / "imgs" / "cam a").mkdir(parents=True)
        paths = [f"imgs/cam a/{i:03}.jpg" for i in range(count)]
        for i, path in enumerate(paths):
            person(30 + i % 50).save(tmp_path / path)
        return tmp_path, paths

    return fill


def test_only_the_first_folder_changes():
    assert sketch_path("imgs/imgs/a.imgs.jpg") == "imgs-sketch/imgs/a.imgs.jpg"
    assert sketch_path("CUHK-PEDES/imgs/cam_a/1.png") == "CUHK-PEDES/imgs-sketch/cam_a/1.png"
    with pytest.raises(DataError, match="should lie in a folder imgs/"):
        sketch_path("photos/1.jpg")


def test_writes_one_sketch_a_photo_in_its_format(world):
    root, paths = world(3)
    person().save(root / "imgs/b.png")
    made = make_sketches(root, [*paths, "imgs/b.png", paths[0]])
    assert made[0] == made[-1] == "imgs-sketch/cam a/000.jpg"
    assert sorted(p.relative_to(root).as_posix() for p in root.glob("imgs-sketch/**/*.*")) == sorted(set(made))
    with Image.open(root / made[0]) as sketch, Image.open(root / "imgs-sketch/b.png") as other:
        assert (sketch.format, sketch.mode, sketch.size) == ("JPEG", "L", (128, 256))
        assert other.format == "PNG"


def test_depends_on_photo_path_and_seed_alone(world):
    root, paths = world(2)
    person().save(root / paths[1])
    person().save(root / paths[0])

    def pixels(seed: int, **options) -> list[bytes]:
        made = make_sketches(root, paths, seed, **options)
        found = [(root / path).read_bytes() for path in made]
        for path in made:
            (root / path).unlink()
        return found

    first = pixels(0, workers=1)
    assert first == pixels(0, workers=2)
    assert first[0] != first[1], "the same photo under another name is drawn anew"
    assert first[0] != pixels(1)[0]


def test_keeps_what_is_there_and_draws_what_is_missing(world, monkeypatch):
    root, paths = world(5)
    made = make_sketches(root, paths, workers=1)
    before = [(root / path).read_bytes() for path in made]
    (root / made[3]).unlink()
    drawn = []
    real = sketching.draw_sketch
    monkeypatch.setattr(sketching, "draw_sketch", lambda *args: drawn.append(1) or real(*args))
    make_sketches(root, paths, workers=1)
    assert len(drawn) == 1
    assert before == [(root / path).read_bytes() for path in made]


def test_killed_run_leaves_no_half_file_and_goes_on(world):
    root, paths = world(200)
    run = multiprocessing.get_context("fork").Process(target=make_sketches, args=(root, paths), kwargs={"workers": 1})
    run.start()
    deadline = time.monotonic() + 30
    while len(list(root.glob("imgs-sketch/**/*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    run.kill()
    run.join()
    done = [path for path in map(sketch_path, paths) if (root / path).exists()]
    assert 5 <= len(done) < 200
    for path in done:
        open_image(root / path)
    make_sketches(root, paths[:20], workers=1)
    assert all((root / sketch_path(path)).exists() for path in paths[:20])


def test_unreadable_photos_are_named_after_the_rest_is_drawn(world):
    root, paths = world(3)
    (root / paths[1]).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"get no sketch: 1\. .*001\.jpg"):
        assert make_sketches(root, paths, workers=1) == [sketch_path(paths[0]), sketch_path(paths[2])]
    assert [(root / sketch_path(path)).exists() for path in paths] == [True, False, True]


def test_path_out_of_the_root_is_refused(tmp_path):
    with pytest.raises(DataError, match="leaves its folder"):
        make_sketches(tmp_path, ["../imgs/a.jpg"])


def test_draws_outlines_and_hatches_what_is_dark():
    sketch = np.asarray(draw_sketch(person(), np.random.default_rng(0)), dtype=float)
    plain = np.asarray(draw_sketch(person(190), np.random.default_rng(0)), dtype=float)
    inside, outline, ground = sketch[70:190, 50:78], sketch[60:200, 36:46], sketch[4:30, 4:120]
    assert ground.mean() > 240, "paper stays white"
    assert outline.min(axis=1).mean() < 140, "nearly every row has a line at the figure's edge"
    assert inside.std() > 20 and 40 < inside.mean() < 230, "the dark inside is strokes, neither white nor black"
    assert plain[70:190, 50:78].mean() > 240, "light clothes are left white"


def test_hands_differ_but_draw_the_same_figure():
    a, b = (np.asarray(draw_sketch(person(), np.random.default_rng(seed)), dtype=float) for seed in (0, 1))
    moved = np.asarray(draw_sketch(person().transpose(Image.Transpose.ROTATE_90), np.random.default_rng(0)))
    assert not np.array_equal(a, b)
    assert moved.shape == (256, 512)
    rows = [255 - x.mean(axis=1) for x in (a, b)]
    assert np.corrcoef(*rows)[0, 1] > 0.8
