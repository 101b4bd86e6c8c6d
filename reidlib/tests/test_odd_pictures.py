"""Training, evaluation and the demos see the very same pixels of any picture, and refuse the same ones."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from reidlib.data.images import Pixels, open_image
from reidlib.errors import DataError, ReidError
from reidlib.evaluation import Encoder
from reidlib.retrieval import Gallery, QuerySession, encode_folder
from reidlib.tests.attribute_model import AttributeModel, make_gallery
from reidlib.widgets import SearchPanel

SIZE = (32, 16)


class Eye(AttributeModel):
    """Embeds a picture as the pixels it is given, (B, 3 * 32 * 16) from 0 to 1."""

    def embed_image(self, images):
        return images.flatten(1)

    embed_sketch = embed_image


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape, top=255, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, top + 1, shape, dtype=dtype)


def colour():
    return Image.fromarray(noise(50, 30, 3))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(colour(), "JPEG", exif=exif)


def animated(kind):
    return encoded(colour(), kind, save_all=True, append_images=[Image.new("RGB", (30, 50), "blue")], duration=100)


def palette():
    image = colour().quantize(16)
    return encoded(image, "PNG", transparency=3)


def declared(width, height):
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


ODD = {
    "plain.jpg": encoded(colour(), "JPEG"),
    "turned.jpg": turned(),
    "cmyk.jpg": encoded(colour().convert("CMYK"), "JPEG"),
    "grey.png": encoded(colour().convert("L"), "PNG"),
    "bits.png": encoded(colour().convert("1"), "PNG"),
    "deep.png": encoded(Image.fromarray(noise(50, 30, top=65535, dtype=np.uint16)), "PNG"),
    "float.tif": encoded(Image.fromarray(noise(50, 30).astype(np.float32)), "TIFF"),
    "palette.png": palette(),
    "alpha.png": encoded(Image.fromarray(noise(50, 30, 4)), "PNG"),
    "grey-alpha.png": encoded(Image.fromarray(noise(50, 30, 2), "LA"), "PNG"),
    "moving.gif": animated("GIF"),
    "moving.webp": animated("WEBP"),
    "moving.png": animated("PNG"),
    "one.bmp": encoded(Image.new("RGB", (1, 1), "red"), "BMP"),
    "thin.png": encoded(Image.fromarray(noise(2, 3000, 3)), "PNG"),
    "jpeg-called.png": encoded(colour(), "JPEG"),
}
BROKEN = {
    "cut.jpg": ODD["plain.jpg"][:700],
    "cut.png": ODD["alpha.png"][:700],
    "cut.webp": ODD["moving.webp"][:300],
    "huge.png": declared(100_000, 100_000),
    "wide.png": declared(2**31 - 1, 1),
    "large.png": declared(9_000, 9_000),
    "empty.jpg": b"",
    "words.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    model = AttributeModel()
    return SearchPanel(QuerySession(model, make_gallery(folder / "people", 3)), folder=folder)


@pytest.mark.parametrize("name", ODD)
def test_the_same_pixels_everywhere(name, tmp_path, search):
    root = tmp_path / "pictures"
    root.mkdir()
    (root / name).write_bytes(ODD[name])
    right = open_image(root / name)
    assert right.mode == "RGB"
    small = np.asarray(right.resize(SIZE[::-1], Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    cache = Pixels(root, [name], SIZE, folder=tmp_path / "cache")
    assert (cache[0].numpy() == small).all(), "training"
    evaluated = Encoder(Eye(), cache).images([name])
    demo = encode_folder(Eye(), root, tmp_path / "index").index.vectors([0])
    held = Gallery.encode(Eye(), demo_table(name), root).index.vectors([0])
    expected = torch.tensor(small / np.float32(255)).flatten()[None]
    for what, got in (("evaluation", evaluated), ("a folder", demo), ("a gallery", held)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6, msg=what)

    search.uploaded(ODD[name], "sketch")
    assert (np.asarray(search.session.sketch) == np.asarray(right)).all(), "an upload"


def demo_table(name):
    import pandas as pd

    return pd.DataFrame([{"image": name}])


@pytest.mark.parametrize("name", BROKEN)
def test_the_same_refusal_everywhere(name, tmp_path, search):
    (tmp_path / "good.png").write_bytes(ODD["grey.png"])
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(DataError, match=f"1 of 2 pictures cannot be read; the first: .*{name}"):
        Pixels(tmp_path, ["good.png", name], SIZE, folder=tmp_path / "cache")
    with pytest.raises(DataError, match=name):
        Gallery.encode(Eye(), demo_table(name), tmp_path)
    with pytest.warns(UserWarning, match=f"1 of 2 pictures cannot be read and are left out: {name}"):
        assert encode_folder(Eye(), tmp_path, tmp_path / "index").index.metadata == [{"image": "good.png"}]
    before = len(search.session.history)
    with pytest.raises(ReidError, match="the uploaded file"):
        search.uploaded(BROKEN[name], "sketch")
    assert "the uploaded file" in search.message.value and len(search.session.history) == before
