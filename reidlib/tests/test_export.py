"""A model leaves the workbook and computes the same elsewhere: in open_clip, onnxruntime and the script beside it."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from reidlib import paths
from reidlib.cli import main
from reidlib.errors import ConfigError, ReidError
from reidlib.export import export, one_clip, publish, write_onnx
from reidlib.methods.cffa import CFFA, CFFAConfig
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.diana import DiaNA, DianaConfig
from reidlib.models import load_model, save_model
from reidlib.query import Query

SAID = ["a woman in a red coat", "It's a man!! with 2 bags (blue_ish); café — naïve…", "coat!(long)", "red " * 100, ""]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with numbers, exported, and some pictures."""
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDLIB_OUTPUTS", str(root / "outputs"))
        torch.manual_seed(0)
        model = Clip(ClipConfig(backbone="toy", image_size=(64, 32)))
        folder = paths.run_dir("mine")
        save_model(model, folder / "checkpoint" / "best.safetensors")
        (folder / "config.json").write_text(json.dumps({"dataset": "cuhk-pedes"}))
        labels = {"method": "clip", "label": "CLIP fine-tuned", "dataset": "cuhk-pedes", "seed": 0, "task": "t2i"}
        (folder / "metrics.json").write_text(json.dumps({"rows": [labels | {"R@1": 50.0, "R@5": 100.0, "mAP": 61.5}]}))
        key = "clip|CLIP fine-tuned|cuhk-pedes|0|t2i"
        ranks = {f"{key}|first": np.array([1, 2] * 50), f"{key}|average_precision": np.array([0.73, 0.5] * 50)}
        np.savez(folder / "per_query.npz", **ranks)
        assert main(["export", "mine", str(root / "out"), "--licence", "cc-by-nc-4.0"]) == 0
    draw = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(draw.integers(0, 256, (90 + i, 40, 3), np.uint8)).save(root / "pictures" / f"{i}.png")
    return root / "out", load_model(str(root / "out")), root / "pictures"


@torch.no_grad()
def test_open_clip_reads_the_folder_and_computes_the_same(exported):
    folder, model, pictures = exported
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    words = open_clip.get_tokenizer(f"local-dir:{folder}")
    files = sorted(pictures.iterdir())
    images = torch.stack([transform(Image.open(file)) for file in files])
    assert torch.allclose(images, model.pixels(files), atol=1e-5)
    images = model.pixels(files)
    assert torch.equal(theirs.encode_image(images, normalize=True), model.embed_image(images))
    ours = model.embed([Query(text) for text in SAID[:3]])
    torch.testing.assert_close(theirs.encode_text(words(SAID[:3]), normalize=True), ours, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*longer than")
def test_the_towers_in_onnxruntime_at_any_batch(exported):
    import onnxruntime

    folder, model, _ = exported
    for part, inputs in (("image", torch.randn(5, 3, 64, 32)), ("text", model.tokenize(SAID))):
        session = onnxruntime.InferenceSession(folder / f"{part}.onnx")
        ours = getattr(model, f"embed_{part}")(inputs).numpy()
        for size in (1, 2, 5):
            [found] = session.run(None, {session.get_inputs()[0].name: inputs[:size].numpy()})
            np.testing.assert_allclose(found, ours[:size], atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_the_script_reads_words_and_pictures_as_the_model_does(exported):
    folder, model, pictures = exported
    spec = importlib.util.spec_from_file_location("search_script", folder / "search.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ours = model.tokenize(SAID)
    assert np.array_equal(np.concatenate([script.encode(text) for text in SAID]), ours.numpy())
    files = sorted(pictures.iterdir())
    np.testing.assert_allclose(
        np.concatenate([script.pixels(f) for f in files]), model.pixels(files).numpy(), atol=1e-5
    )
    done = subprocess.run(
        [sys.executable, folder / "search.py", pictures, SAID[0]], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        scores = (model.embed_image(model.pixels(files)) @ model.embed([Query(SAID[0])]).T)[:, 0]
    best = [line.split("  ") for line in done.stdout.splitlines()]
    assert [file for _, file in best] == [str(files[i]) for i in scores.argsort(descending=True)]
    np.testing.assert_allclose([float(score) for score, _ in best], sorted(scores.tolist(), reverse=True), atol=1e-3)
    lines = [line for line in (folder / "search.py").read_text().splitlines() if line.strip() and "import" not in line]
    assert len(lines) < 50 and "torch" not in (folder / "search.py").read_text()


def test_the_card_says_data_protocol_numbers_licence_and_limits(exported):
    card = (exported[0] / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "Trained on: cuhk-pedes." in card and "must not be used for" in card
    row = r"\| CLIP fine-tuned \| cuhk-pedes \| t2i \| 50.00 \((\d\d.\d) to (\d\d.\d)\) \| 100.00 \(100.0 to 100.0\) \|"
    low, high = map(float, re.search(row, card).groups())
    assert 38 < low < 42 and 58 < high < 62  # of a hundred queries


@torch.no_grad()
def test_both_towers_of_a_method_that_compares_words_and_patches(tmp_path):
    import onnxruntime

    model = CFFA(CFFAConfig.preset("toy", backbone="toy-random"), 2).eval()
    told = write_onnx(model, tmp_path)
    assert (tmp_path / "text.onnx").is_file() and (tmp_path / "search.py").is_file(), told
    # A piece of a word with id 0 ties with padding, and which of them is selected is left to the library's top-k.
    ids = model.tokenize([*SAID[:2], "a", "a man with a bag", "red " * 60])
    assert not ((ids == 0) & (torch.arange(ids.shape[1]) < ids.argmax(1, keepdim=True))).any()
    for part, inputs in (("image", torch.randn(5, 3, *model.image_size)), ("text", ids)):
        session = onnxruntime.InferenceSession(tmp_path / f"{part}.onnx")
        for size in (1, 2, 5):
            [found] = session.run(None, {session.get_inputs()[0].name: inputs[:size].numpy()})
            ours = getattr(model, f"embed_{part}")(inputs[:size]).numpy()
            np.testing.assert_allclose(found, ours, atol=1e-4)


class FakeHub:
    def __init__(self, refuse: bool = False):
        self.refuse, self.calls = refuse, []

    def create_repo(self, repository, **options):
        if self.refuse:
            raise ConnectionError("401 Client Error")
        self.calls.append(("create", repository, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options))


def test_publishing(exported, tmp_path):
    hub = FakeHub()
    assert publish(exported[0], "me/mine", api=hub) == "https://huggingface.co/me/mine"
    assert hub.calls[0] == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert hub.calls[1] == ("upload", {"repo_id": "me/mine", "folder_path": str(exported[0])})
    with pytest.raises(ReidError, match="401 Client Error.*hf auth login"):
        publish(exported[0], "me/mine", api=FakeHub(refuse=True))
    with pytest.raises(ReidError, match="no README.md"):
        publish(tmp_path, "me/mine", api=hub)
    with pytest.raises(ConfigError, match="new or an empty folder"):
        export("toy", exported[0])


def test_which_methods_are_one_clip():
    cffa = CFFAConfig.preset("toy", backbone="toy-random", local_dim=0)
    assert one_clip(Clip(ClipConfig(backbone="toy-random"))) and one_clip(CFFA(cffa, 2))
    assert not one_clip(CFFA(cffa.replace(local_dim=16), 2))
    assert not one_clip(CFine(CFineConfig.preset("toy", backbone="toy-random"), 2))
    assert not one_clip(DiaNA(DianaConfig.preset("toy", backbone="toy-random")))
