import errno
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reidlib import rowstore
from reidlib.data import images
from reidlib.data.augment import CLIP
from reidlib.data.images import Pixels, Preprocess, open_image, read_pixels
from reidlib.errors import ConfigError, DataError

Usage = namedtuple("Usage", "total used free")


def noise(height=40, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    names = [f"{i:03d}.png" for i in range(20)]
    for i, name in enumerate(names):
        Image.fromarray(noise(seed=i)).save(root / name)
    return root, names


def cached(folder, tmp_path, **options):
    root, names = folder
    return Pixels(root, options.pop("paths", names), (16, 8), folder=tmp_path / "cache", **options)


def expected(root, name, size=(16, 8)):
    return np.asarray(Image.open(root / name).convert("RGB").resize(size[::-1], Image.BICUBIC)).transpose(2, 0, 1)


# open_image


def test_open_image_turns_by_exif_and_reads_bytes_files_and_paths(tmp_path):
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), data, io.BytesIO(data)):
        image = open_image(source)
        assert image.size == (30, 60) and image.mode == "RGB"
        assert np.asarray(image)[:25].mean() > 240 and np.asarray(image)[35:].mean() < 15


def test_open_image_scales_sixteen_bit_grey():
    grey = np.linspace(0, 65535, 600).reshape(30, 20).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(grey).save(file, kind)
        got = np.asarray(open_image(file.getvalue()))
        assert np.abs(got[..., 0].astype(int) - np.round(grey / 257)).max() <= 1
        assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize("top,white", [(1.0, 1.0), (200.0, 255.0), (1e6, 1e6)])
def test_open_image_scales_float_grey_by_its_full_scale(top, white):
    grey = np.linspace(0, top, 100, dtype=np.float32).reshape(10, 10)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "TIFF")
    assert np.abs(np.asarray(open_image(file.getvalue()))[..., 1] - grey / white * 255).max() <= 0.51


def test_open_image_lays_transparency_on_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4, 3] = 255
    for mode in ("RGBA", "LA"):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "PNG")
        got = np.asarray(open_image(file.getvalue()))
        assert got[:, :4].max() == 0 and got[:, 4:].min() == 255
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=1)
    assert np.asarray(open_image(file.getvalue())).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode,kind", [("CMYK", "JPEG"), ("P", "GIF"), ("L", "PNG"), ("1", "PNG"), ("YCbCr", "TIFF")])
def test_open_image_converts_other_colour_models(mode, kind):
    red = Image.new("RGB", (16, 16), (230, 20, 30)).convert(mode)
    file = io.BytesIO()
    red.save(file, kind)
    got = np.asarray(open_image(file.getvalue()).resize((1, 1))).ravel().astype(int)
    assert np.abs(got - np.asarray(red.convert("RGB").resize((1, 1))).ravel()).max() <= 3


def test_open_image_takes_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert open_image(file.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_open_image_refuses_in_one_sentence_that_names_the_file(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(file, "JPEG")
    cases = {"cut.jpg": file.getvalue()[:3000], "empty.jpg": b"", "words.jpg": b"no picture at all"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    for name in [*cases, "missing.jpg"]:
        with pytest.raises(DataError, match=name):
            open_image(tmp_path / name)
    with pytest.raises(DataError, match="uploaded file"):
        open_image(b"words")
    with pytest.raises(DataError):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    (tmp_path / "big.png").write_bytes(file.getvalue())
    with pytest.raises(DataError, match="big.png is 200 x 200"):
        open_image(tmp_path / "big.png")


def test_open_image_refuses_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    file = io.BytesIO()
    Image.new("L", (100, 100)).save(file, "PNG")
    with pytest.raises(DataError, match="megapixels"):
        open_image(file.getvalue())


# Pixels


def test_cache_holds_what_pillow_gives(folder, tmp_path):
    root, names = folder
    paths = [*names, names[3]]
    cache = cached(folder, tmp_path, paths=paths)
    assert len(cache) == 21 and cache.store.file.stat().st_size == 20 * 3 * 16 * 8
    batch = cache[torch.tensor([20, 0, 7])]
    assert batch.dtype == torch.uint8 and batch.shape == (3, 3, 16, 8)
    for got, name in zip(batch, (names[3], names[0], names[7]), strict=True):
        assert (got.numpy() == expected(root, name)).all()
    assert torch.equal(cache[cache.index[names[7]]], batch[2]) and cache.index[names[3]] == 3
    assert torch.equal(cache[:], cache[np.arange(21)]) and torch.equal(pickle.loads(pickle.dumps(cache))[:], cache[:])
    batch += 1  # a copy: the file is not touched
    assert (cache[0].numpy() == expected(root, names[0])).all()


def test_cache_decodes_once_and_again_only_what_changed(folder, tmp_path, monkeypatch):
    root, names = folder
    cached(folder, tmp_path)
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, size: opened.append(Path(path).name) or open_image(path))
    cached(folder, tmp_path)
    assert opened == []
    Image.fromarray(noise(50, 20, seed=99)).save(root / names[5])
    cache = cached(folder, tmp_path)
    assert opened == [names[5]] and (cache[5].numpy() == expected(root, names[5])).all()


def test_cache_names_unreadable_pictures_after_the_rest_is_done(folder, tmp_path, monkeypatch):
    root, names = folder
    whole = (root / names[2]).read_bytes()
    (root / names[2]).write_bytes(whole[:200])
    (root / names[19]).unlink()
    (root / names[4]).write_bytes(b"")
    os.utime(root / names[4], ns=(0, 0))
    for _ in range(2):
        with pytest.raises(DataError, match="3 of 20 pictures") as caught:
            cached(folder, tmp_path)
        assert all(name in str(caught.value) for name in (names[2], names[4], names[19]))
    for row in (2, 4, 19):
        Image.fromarray(noise(seed=row)).save(root / names[row])
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, size: opened.append(Path(path).name) or open_image(path))
    cache = cached(folder, tmp_path)
    assert sorted(opened) == [names[2], names[4], names[19]]
    assert all((cache[i].numpy() == expected(root, name)).all() for i, name in enumerate(names))


def test_cache_refuses_paths_outside_its_root_and_an_empty_list(folder, tmp_path):
    with pytest.raises(DataError, match="leaves its folder"):
        cached(folder, tmp_path, paths=["../secret.png"])
    with pytest.raises(DataError, match="at least one"):
        cached(folder, tmp_path, paths=[])


def test_cache_refuses_where_the_disk_has_too_little_room(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rowstore.shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 100))
    with pytest.raises(DataError, match="REIDLIB_OUTPUTS"):
        cached(folder, tmp_path, cached=True)
    root, names = folder
    fresh = cached(folder, tmp_path)  # left to choose, it decodes on the fly
    assert "decoded anew whenever they are needed" in capsys.readouterr().out and not fresh.store.file.exists()
    for pixels in (fresh, pickle.loads(pickle.dumps(fresh))):
        assert (pixels[torch.tensor([3, 0])].numpy() == [expected(root, names[i]) for i in (3, 0)]).all()
        assert pixels[5].shape == (3, 16, 8) and pixels[2:4].shape == (2, 3, 16, 8)
    (root / names[4]).unlink()
    with pytest.raises(DataError, match=names[4]):
        fresh[[4]]


def test_a_disk_that_fills_up_leaves_nothing_that_counts(folder, tmp_path, monkeypatch):
    root, names = folder
    monkeypatch.setattr(images, "CHUNK", 4)
    write, calls = rowstore._sync, []

    def full(file):
        calls.append(file)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file)

    monkeypatch.setattr(rowstore, "_sync", full)
    with pytest.raises(DataError, match="No space left"):
        cached(folder, tmp_path)
    monkeypatch.setattr(rowstore, "_sync", write)
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, size: opened.append(Path(path).name) or open_image(path))
    cache = cached(folder, tmp_path)
    assert set(names[8:]) <= set(opened) and names[0] not in opened
    assert all((cache[i].numpy() == expected(root, name)).all() for i, name in enumerate(names))


SLOW = """
import sys, time
from pathlib import Path
from reidlib.data import images
read = images.open_image
images.CHUNK = 2
images.open_image = lambda path, size: time.sleep(0.1) or read(path)
root = Path(sys.argv[1])
print("ready", flush=True)
images.Pixels(root, sorted(p.name for p in root.iterdir()), (16, 8), folder=Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    root, names = folder
    process = subprocess.Popen([sys.executable, "-c", SLOW, root, tmp_path / "cache"], stdout=subprocess.PIPE)
    process.stdout.readline()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        file = next((tmp_path / "cache").glob("*.rows"), None) if (tmp_path / "cache").exists() else None
        if file and file.stat().st_size > 6 * 384:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, size: opened.append(Path(path).name) or open_image(path))
    cache = cached(folder, tmp_path)
    assert 0 < len(opened) <= 16 and names[0] not in opened
    whole = Pixels(root, names, (16, 8), folder=tmp_path / "other")
    assert cache.store.file.read_bytes() == whole.store.file.read_bytes()


def _fill(root, names, folder):
    Pixels(root, names, (16, 8), folder=folder)


def test_two_processes_at_once_make_one_whole_cache(folder, tmp_path):
    root, names = folder
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(root, names, tmp_path / "cache")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    whole = Pixels(root, names, (16, 8), folder=tmp_path / "other")
    assert cached(folder, tmp_path).store.file.read_bytes() == whole.store.file.read_bytes()


def test_a_new_picture_is_all_that_is_decoded(folder, tmp_path, monkeypatch):
    root, names = folder
    cached(folder, tmp_path, paths=names[4:])
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, size: opened.append(Path(path).name) or open_image(path))
    cache = cached(folder, tmp_path)
    assert opened == names[:4] and all((cache[i].numpy() == expected(root, name)).all() for i, name in enumerate(names))


def test_pictures_are_resized_as_asked(folder, tmp_path):
    root, names = folder
    soft, sharp = cached(folder, tmp_path, interpolation="bilinear"), cached(folder, tmp_path)
    own = Image.open(root / names[0]).resize((8, 16), Image.BILINEAR)
    assert (soft[0].numpy() == np.asarray(own).transpose(2, 0, 1)).all() and (soft[0] != sharp[0]).any()
    with pytest.raises(ConfigError, match="interpolation"):
        cached(folder, tmp_path, interpolation="nearest")


def test_a_huge_jpeg_is_decoded_no_finer_than_needed(tmp_path):
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).resize((2400, 3600), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in {"upright.jpg": {}, "turned.jpg": {"exif": exif}}.items():
        scene.save(tmp_path / name, quality=92, **options)
        whole, small = open_image(tmp_path / name), open_image(tmp_path / name, (128, 64))
        assert small.size == tuple(side // 4 for side in whole.size)
        difference = np.abs(read_pixels(tmp_path / name, (128, 64)).astype(int) - images.resized(whole, (128, 64)))
        assert difference.mean() < 0.5 and difference.max() <= 6


def test_a_huge_picture_is_held_once(tmp_path):
    """Pillow copies where it turns and converts nothing, which took four times the memory."""
    Image.new("RGB", (4000, 5000), "red").save(tmp_path / "huge.png")

    def blocks(run) -> int:
        """Blocks of 16 MB that Pillow took for pixels."""
        Image.core.reset_stats()
        run()
        return Image.core.get_stats()["allocated_blocks"] + Image.core.get_stats()["reused_blocks"]

    once = blocks(lambda: Image.open(tmp_path / "huge.png").load())
    assert blocks(lambda: Preprocess((128, 64), *CLIP).pixels(open_image(tmp_path / "huge.png"))) < 2 * once
