"""Models by name: runs, open_clip's, files and folders; the one that fits a search; where a training starts from."""

import json
import socket
import time

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from reidlib import methods, models, paths, weights
from reidlib.backbones.clip import create_clip, write_folder
from reidlib.errors import CheckpointError, ConfigError, ReidError
from reidlib.methods.base import Method
from reidlib.methods.cffa import CFFA, CFFAConfig
from reidlib.methods.cfine import CFine, CFineConfig
from reidlib.methods.clip import Clip, ClipConfig
from reidlib.methods.diana import DiaNA, DianaConfig
from reidlib.methods.interactreid import AdaptConfig, InteractReIDAdapt, InteractReIDInvert, InvertConfig
from reidlib.models import load_model, pick_model, save_model, start_from, trained
from reidlib.query import Query
from reidlib.tests.test_golden_diana import word_tokenizer

SAID = [Query("a man in a red coat"), Query("a woman with a bag")]


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Whatever opens a connection fails the test."""

    def refuse(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def run(name: str, model: Method, dataset: str = "toy") -> str:
    folder = paths.run_dir(name.split("/")[0])
    save_model(model, paths.inside(paths.outputs_dir(), name) / "checkpoint" / "best.safetensors")
    (folder / "config.json").write_text(json.dumps({"dataset": dataset}))
    return name


def clip(**settings) -> Clip:
    return Clip(ClipConfig(backbone="toy-random", **settings)).eval()


def bert_folder(folder):
    """A small BERT and a tokenizer, as the hub's folders hold them."""
    from transformers import BertConfig, BertModel

    words = word_tokenizer(60, 1, 2, 3)
    words.save_pretrained(folder)
    sizes = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=60, pad_token_id=1, **sizes)).save_pretrained(folder)
    return str(folder)


def llama_folder(folder):
    from transformers import LlamaConfig, LlamaModel

    word_tokenizer(60, 1, 2, 3).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=60, num_key_value_heads=1, **sizes)).save_pretrained(folder)
    return str(folder)


MAKE = {
    "clip": lambda folder: clip(views=("text", "sketch")),
    "cfine": lambda folder: CFine(
        CFineConfig.preset("toy", backbone="toy-random", text_encoder=bert_folder(folder), text_length=20), 3
    ),
    "cfine-toy": lambda folder: CFine(CFineConfig.preset("toy", backbone="toy-random", text_encoder="toy-random"), 3),
    "cffa": lambda folder: CFFA(CFFAConfig.preset("toy", backbone="toy-random"), 3),
    "interactreid-1": lambda folder: InteractReIDAdapt(AdaptConfig.preset("toy", backbone="toy-random")),
    "interactreid": lambda folder: InteractReIDInvert(InvertConfig.preset("toy", backbone="toy-random")),
    "diana": lambda folder: DiaNA(DianaConfig.preset("toy", backbone="toy-random")),
    "diana-transformers": lambda folder: DiaNA(
        DianaConfig.preset("toy", towers="transformers", text_tower=llama_folder(folder), system="")
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("method", MAKE)
def test_a_run_loads_without_a_network_and_without_the_files_it_began_with(tmp_path, no_network, method):
    folder = tmp_path / "began_with"
    folder.mkdir()
    model = MAKE[method](folder).eval()
    run("mine", model)
    folder.rename(tmp_path / "gone")
    again = load_model("mine")
    assert type(again) is type(model) and again.preprocess == model.preprocess
    torch.testing.assert_close(again.embed(SAID), model.embed(SAID))
    images = torch.randn(2, 3, *model.image_size)
    torch.testing.assert_close(again.embed_image(images), model.embed_image(images))


def test_names_that_mean_something(tmp_path):
    run("one", clip())
    run("two/text", clip())
    run("three/a", clip())
    run("three/b", clip())
    assert load_model("one").name == load_model("two").name == load_model("two/text").name == "clip"
    assert load_model("toy").reads == ("text", "sketch")
    assert load_model(str(tmp_path / "one" / "checkpoint" / "best.safetensors")).name == "clip"
    with pytest.raises(CheckpointError, match="name one of its trainings: three/a, three/b"):
        load_model("three")
    small = create_clip("ViT-S-32-alt")
    (tmp_path / "elsewhere").mkdir()
    write_folder(tmp_path / "elsewhere", small.config, small.preprocess)
    torch.save(small.model.state_dict(), tmp_path / "elsewhere" / "open_clip_pytorch_model.bin")
    for name in (str(tmp_path / "elsewhere"), f"ViT-S-32-alt:{tmp_path / 'elsewhere' / 'open_clip_pytorch_model.bin'}"):
        model = load_model(name)
        assert torch.equal(model.clip.model.visual.conv1.weight, small.model.visual.conv1.weight)
        assert model.preprocess == small.preprocess


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("02_none", "no run and no model '02_none'"),
        ("ViT-S-32-alt", "random weights without a tag"),
        ("ViT-B-32:opanai", "has no weights 'opanai'"),
        ("ViTB32:openai", "the nearest is"),
        ("", "no model without a name"),
    ],
)
def test_names_that_mean_nothing(name, told):
    with pytest.raises(ConfigError, match=told):
        load_model(name)


def test_photos_are_searched_by_what_was_trained_on_photos(monkeypatch):
    run("drawn", clip())
    assert pick_model(["text"], photos=False)[1] == "The model is clip from the run drawn, trained on drawn people."
    with pytest.raises(ReidError, match="hf download .* model='toy' insists"):
        pick_model(["text"], photos=True)
    run("real", clip(), dataset="cuhk-pedes")
    run("later", clip(views=("sketch",)), dataset="pku-sketch")
    run("drawn_again", clip())
    assert pick_model(["text"], photos=True)[1] == "The model is clip from the run real, trained on photos."
    assert pick_model(["sketch"], photos=True)[1].startswith("The model is clip from the run later")
    run("both", clip(views=("text", "sketch")), dataset="pku-sketch")
    run("words", clip(), dataset="cuhk-pedes")
    assert "the run both" in pick_model(["text"], photos=True, also=["sketch"])[1]
    with pytest.raises(ReidError, match="words reads text; expected text or turns and sketch"):
        pick_model(["text", "turns"], photos=True, name="words", also=["sketch"])
    assert pick_model(["text"], photos=True, name="toy")[1] == "The model is toy, as asked for."
    with pytest.raises(ReidError, match="later reads sketch; expected text"):
        pick_model(["text"], photos=True, name="later")
    with pytest.raises(ReidError, match="reads turns"):
        pick_model(["turns"], photos=True)


def test_a_small_model_is_fetched_once_for_photos(monkeypatch, capsys):
    made = create_clip("ViT-S-32-alt")
    monkeypatch.setattr(models, "_size_to_fetch", lambda repository: 605_000_000)
    monkeypatch.setattr(models, "create_clip", lambda name: made)
    model, why = pick_model(["text"], photos=True)
    assert "(605 MB)" in capsys.readouterr().out and "squashed to 224 x 224" in why
    tall = Image.new("RGB", (100, 300))
    tall.paste("red", (0, 0, 100, 20))
    assert model.preprocess.pixels(tall)[0, 0, 0] == 255, "the head is not cut off"
    assert load_model("toy").preprocess.resize == "squash"


# -- a method of one's own -------------------------------------------------------------------------------------------


class Mine(Clip):
    name = "mine"


def test_a_method_of_ones_own_works_by_name_when_it_is_registered(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    methods.register(Mine, ClipConfig)
    run("by_me", Mine(ClipConfig(backbone="toy-random")))
    assert type(load_model("by_me")) is Mine and trained("mine") == [("by_me", "")]
    assert methods.config_class("mine") is ClipConfig


def test_methods_in_modules_that_the_environment_names_are_known(tmp_path, monkeypatch):
    (tmp_path / "by_somebody.py").write_text(
        "from reidlib import methods\nfrom reidlib.methods.clip import Clip, ClipConfig\n"
        "class Theirs(Clip):\n    name = 'theirs'\nmethods.register(Theirs, ClipConfig)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    with pytest.raises(ConfigError, match="REIDLIB_METHODS"):
        methods.config_class("theirs")
    monkeypatch.setenv("REIDLIB_METHODS", "by_somebody")
    assert methods.config_class("theirs") is ClipConfig


# -- where a training starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "begin"),
    [
        ("cffa", lambda: clip()),
        ("clip", lambda: CFFA(CFFAConfig.preset("toy", backbone="toy-random"), 7)),
        ("cffa", lambda: CFFA(CFFAConfig.preset("toy", backbone="toy-random"), 7)),
        ("clip", lambda: CFine(CFineConfig.preset("toy", backbone="toy-random", text_encoder="toy-random"), 3)),
        ("interactreid-1", lambda: DiaNA(DianaConfig.preset("toy", backbone="toy-random"))),
        ("clip", lambda: InteractReIDInvert(InvertConfig.preset("toy", backbone="toy-random"))),
    ],
)
def test_a_training_starts_from_any_model_that_fits(tmp_path, capsys, other, begin):
    run("other", MAKE[other](tmp_path))
    model, source = begin(), load_model("other")
    told = start_from(model, "other")
    assert told["start"] == "other" and told["taken"]["clip.model.visual"] and json.dumps(told)
    assert capsys.readouterr().out.startswith("Starts from other: taken ")
    tower = getattr(model, "clip", None) or model.towers.clip
    for name, tensor in tower.model.visual.state_dict().items():
        assert torch.equal(tensor, source.clip.model.visual.state_dict()[name]), name
    if isinstance(model, CFFA):
        assert "head.classifier" in told["new"]
    if isinstance(model, CFFA) and other == "cffa":
        assert told["left"] == {"head.classifier": 2} and "head.text_local" in told["taken"]


def test_another_picture_size_interpolates_positions_and_another_model_is_refused(tmp_path):
    run("other", clip())
    model = Clip(ClipConfig(backbone="toy-random", image_size=(256, 64)))
    start_from(model, "other")
    known = load_model("other").clip.model.visual.positional_embedding
    assert torch.equal(model.clip.model.visual.positional_embedding[0], known[0])
    wide = Clip(ClipConfig(backbone="ViT-S-32-alt", image_size=(64, 64)))
    with pytest.raises(ReidError, match="Nothing of the image tower of other"):
        start_from(wide, "other")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is tried again"))
    with pytest.raises(ReidError, match="SigLIP:webli could not be loaded: [^.]*[.]bin[^.]*[.] W"):
        load_model("ViT-B-16-SigLIP:webli")
    assert asked == [("huggingface.co", 443)] and not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(weights, "getproxies", lambda: {"https": "proxy:80"})
    with weights.hub():
        assert not constants.HF_HUB_OFFLINE
    assert len(asked) == 1, "a proxy answers in its place"
