"""Official checkpoints of every method, made up in their layout: what is imported embeds as written out by hand."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, normalize, relu
from torch.testing import assert_close

from reidlib import official
from reidlib.cli import main
from reidlib.errors import CheckpointError, ConfigError
from reidlib.methods.diana import DiaNA, DianaConfig
from reidlib.models import import_run, load_model, pick_model
from reidlib.official import KINDS, import_official
from reidlib.query import Query
from reidlib.tests import naive_towers as naive
from reidlib.tests import official_names as names
from reidlib.tests.test_golden_diana import word_tokenizer
from reidlib.tests.test_models import llama_folder

CAPTIONS = ["a man in a red coat and black shoes", "woman", "a boy with a bag", "the same boy, seen from behind"]
TALL, WIDE = {"image_size": (48, 32)}, {"image_size": (64, 32)}


def small(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names with weights so small that attention is soft and rankings do not hang on the last digit."""
    return {
        name: t * 0.2 if t.is_floating_point() and not name.endswith("running_var") else t for name, t in state.items()
    }


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "best.pth")
    return folder / "best.pth"


def written(folder: Path, kind: str, state: dict[str, Tensor]) -> Path:
    """A file as the official code of `kind` writes it."""
    if kind == "cfine":
        state = dict(state)
        return saved(folder, {"network": state, "epoch": 3, "optimizer": {"state": {}}} | under_w(state))
    return saved(folder, state if kind == "llava-reid" else {"model": state, "epoch": 3, "iteration": 10})


def under_w(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"W": torch.nn.Parameter(state.pop("W"))} if "W" in state else {}


MAKE = {
    "cfine": lambda: names.cfine() | {"W": torch.randn(64, 11)},
    "cffa": lambda: names.irra() | names.local_layers(),
    "irra": names.irra,
    "rde": names.rde,
    "mllm4text": lambda: names.prefixed("base_model.", names.towers()),
    "ham": lambda: names.prefixed("base_model.", names.towers()),
    "llava-reid": lambda: names.irra(words=192),
    "tbps-clip": names.tbps_clip,
    "interactreid-1": names.interactreid_1,
    "interactreid": names.interactreid,
}
SIZES = {"cfine": {}, "tbps-clip": WIDE, "interactreid-1": WIDE, "interactreid": WIDE}


def imported(folder: Path, kind: str, state: dict[str, Tensor]):
    return import_official(kind, written(folder, kind, state), **SIZES.get(kind, TALL))


# -- embeddings, written out -----------------------------------------------------------------------------------------


def pooled(towers: dict[str, Tensor], images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features of the first image token and of the end of text."""
    image, text = naive.picture_tokens(naive.under(towers, "visual."), images)[0], naive.word_tokens(towers, ids)[0]
    return normalize(image[:, 0], dim=1), normalize(text[torch.arange(len(ids)), ids.argmax(dim=1)], dim=1)


def local(state: dict[str, Tensor], layer: str, projection: str, tokens: Tensor) -> Tensor:
    """RDE's embedding of selected tokens (K, D) -> (dim,)."""
    x = normalize(tokens, dim=1)
    inner = linear(x, state[f"{layer}.mlp.layers.0.weight"], state[f"{layer}.mlp.layers.0.bias"])
    inner = relu(naive.batch_norm(state, f"{layer}.mlp.bns.0", inner))
    deep = linear(inner, state[f"{layer}.mlp.layers.1.weight"], state[f"{layer}.mlp.layers.1.bias"])
    plain = linear(x, state[f"{layer}.{projection}.weight"], state[f"{layer}.{projection}.bias"])
    return normalize((plain + deep).amax(dim=0), dim=0)


def rde_similarity(state: dict[str, Tensor], images: Tensor, ids: Tensor) -> Tensor:
    """(cos of the wholes + cos of the local features) / 2, captions by pictures."""
    towers = naive.under(state, "base_model.")
    tokens, seen = naive.picture_tokens(naive.under(towers, "visual."), images)
    count = int((tokens.shape[1] - 1) * 0.3)
    patches = [
        local(state, "visul_emb_layer", "fc", x[1:][a[0, 1:].argsort(descending=True)[:count]])
        for x, a in zip(tokens, seen, strict=True)
    ]
    words = []
    for row, x, a in zip(ids, *naive.word_tokens(towers, ids), strict=True):
        end = int(row.argmax())
        best = a[end, 1:end].argsort(descending=True)[: int(75 * 0.3)] + 1
        words.append(local(state, "texual_emb_layer", "linear", x[best]))
    image, text = pooled(towers, images, ids)
    return (text @ image.T + torch.stack(words) @ torch.stack(patches).T) / 2


def clip_similarity(towers: dict[str, Tensor], images: Tensor, ids: Tensor) -> Tensor:
    image, text = pooled(towers, images, ids)
    return text @ image.T


def cfine_similarity(state: dict[str, Tensor], images: Tensor, ids: Tensor) -> Tensor:
    def embedded(tokens, seen, ratio, neck, padding=None):
        count, scores = int(tokens.shape[1] * ratio), seen[:, 0].clone()
        scores[:, 0] = 0
        best = scores.argsort(dim=1, descending=True)
        groups = [
            tokens.gather(1, best[:, i * count : (i + 1) * count, None].expand(-1, -1, tokens.shape[2])) for i in (0, 1)
        ]
        block = naive.under(state, "block.layers.0.")
        features = [tokens[:, 0], *(naive.refined(block, tokens, group, padding) for group in groups)]
        return normalize(torch.cat([naive.batch_norm(state, neck, x) for x in features], dim=1), dim=1)

    vision = naive.picture_tokens(naive.under(state, "image_model.clip_model."), images)
    text = naive.bert_tokens(naive.under(state, "language_model.textExtractor."), ids)
    return embedded(*text, 0.2, "bottleneck_text", ids == 0) @ embedded(*vision, 0.1, "bottleneck_image").T


def tbps_towers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("tbps_clip.").removeprefix("encode_text."): tensor for name, tensor in state.items()}


BY_HAND = {
    "cfine": cfine_similarity,
    "cffa": rde_similarity,
    "rde": rde_similarity,
    "tbps-clip": lambda state, *queries: clip_similarity(tbps_towers(state), *queries),
    "interactreid-1": lambda state, *queries: clip_similarity(tbps_towers(state), *queries),
    "interactreid": lambda state, *queries: clip_similarity(tbps_towers(state), *queries),
}


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", MAKE)
def test_an_imported_model_embeds_as_written_out(tmp_path, kind, prefix):
    torch.manual_seed(0)
    state = small(MAKE[kind]())
    model = imported(tmp_path, kind, names.prefixed(prefix, state) if kind != "cfine" else state)
    images = torch.randn(3, 3, *model.image_size)
    ids = torch.randint(1, 50, (4, 100)) if kind == "cfine" else model.tokenize(CAPTIONS)
    if kind == "cfine":
        ids[0, 90:] = 0  # still more words than are selected
    by_hand = BY_HAND.get(kind, lambda s, *queries: clip_similarity(naive.under(s, "base_model."), *queries))
    assert_close(model.embed_text(ids) @ model.embed_image(images).T, by_hand(state, images, ids), atol=1e-5, rtol=1e-4)
    assert model.config.precision == "auto"


@torch.no_grad()
def test_a_sketch_and_words_of_the_second_stage(tmp_path):
    state = small(names.interactreid())
    model = imported(tmp_path, "interactreid", state)
    sketches, texts = torch.randn(2, 3, 64, 32), ["in red", "with a blue bag"]
    ids = model.clip.tokenize([f"a photo of * , and {text}" for text in texts])
    towers = tbps_towers(state)
    image = naive.picture_tokens(naive.under(towers, "visual."), sketches)[0][:, 0]
    hidden = relu(linear(image, state["mapping.layers.0.0.weight"], state["mapping.layers.0.0.bias"]))
    words = linear(hidden, state["mapping.fc_out.weight"], state["mapping.fc_out.bias"])
    embedded = towers["token_embedding.weight"][ids]
    star = int(model.clip.tokenize(["*"])[0, 1])
    for row, word, prompt in zip(embedded, words, ids, strict=True):
        row[(prompt == star).int().argmax()] = word
    text = naive.word_tokens(towers, ids, embedded)[0][torch.arange(2), ids.argmax(dim=1)]
    ours = model.compose({"text": model.tokenize(texts), "sketch": sketches})
    assert_close(ours, normalize(text, dim=1), atol=1e-5, rtol=1e-4)


def test_a_file_without_a_classifier_is_read_without_a_warning(tmp_path, recwarn):
    assert not any("classifier" in name for name in imported(tmp_path, "rde", names.rde()).state_dict())
    assert not [str(warning.message) for warning in recwarn]


@torch.no_grad()
def test_captions_of_192_words_are_read(tmp_path):
    model = imported(tmp_path, "llava-reid", names.irra(words=192))
    assert (
        model.tokenize(["red " * 150]).shape == (1, 192)
        and model.embed_text(model.tokenize(["red " * 150])).isfinite().all()
    )


@pytest.mark.parametrize("kind", ["cffa", "cfine", "tbps-clip"])
def test_halves_become_whole_and_every_weight_arrives(tmp_path, kind):
    state = {name: t.half() if t.is_floating_point() else t for name, t in MAKE[kind]().items()}
    own = imported(tmp_path, kind, state).state_dict()
    names_of = official.NAMES[{"tbps-clip": "tbps", "cffa": "irra"}.get(kind, kind)]
    ours = official.renamed(state, names_of)
    assert set(own) - set(ours) <= {"clip.model.logit_scale"}
    for name, tensor in ours.items():
        assert torch.equal(own[name], tensor.float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("cfine", "W"),
        ("irra", "classifier."),
        ("cffa", "classifier."),
        ("irra", ("classifier.", *official.WORD_GUESSING)),
    ],
)
def test_parts_that_a_search_does_not_need_may_be_absent(tmp_path, kind, gone):
    model = imported(tmp_path, kind, {n: t for n, t in MAKE[kind]().items() if not n.startswith(gone)})
    assert model.num_classes == 0


def test_openai_names_are_those_of_tbps_clip(tmp_path):
    state = names.towers(patches=8) | {"logit_scale": torch.tensor(4.6)}
    state |= {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    model = imported(tmp_path, "tbps-clip", state)
    assert torch.equal(model.clip.model.text_projection, state["text_projection"])


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("cffa", lambda s: s.pop("ln_post.weight"), "missing: head.reasoning.ln_post.weight"),
        ("cffa", lambda s: s.pop("base_model.visual.conv1.weight"), "conv1.weight is missing"),
        ("cffa", lambda s: s.pop("texual_emb_layer.linear.bias"), "missing: head.text_local.project.bias"),
        ("cffa", lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        ("cffa", lambda s: s.update({"classifier.bias": torch.zeros(8)}), r"classifier.bias \(8,\) instead of \(9,\)"),
        ("cffa", lambda s: s.pop("classifier.weight"), "missing: head.classifier.weight"),
        ("cfine", lambda s: s.pop("block.layers.0.ln_1.weight"), "missing: head.block.ln_1.weight"),
        ("cfine", lambda s: s.pop("image_model.clip_model.conv1.weight"), "conv1.weight is missing"),
        ("cfine", lambda s: s.pop("language_model.textExtractor.embeddings.word_embeddings.weight"), "no BERT"),
        ("cfine", lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        ("cfine", lambda s: s.update(W=torch.zeros(7, 64)), r"head.classifier \(7, 64\) instead of \(64, 64\)"),
        ("interactreid", lambda s: s.pop("mapping.layers.0.0.bias"), "missing: mapping.layers.0.0.bias"),
        ("interactreid", lambda s: s.pop("tbps_clip.visual.conv1.weight"), "conv1.weight is missing"),
        ("interactreid", lambda s: s.update({"tbps_clip.teacher": torch.zeros(1)}), "unexpected: clip.model.teacher"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, kind, change, told):
    state = MAKE[kind]()
    change(state)
    with pytest.raises(CheckpointError, match=told):
        imported(tmp_path, kind, state)


@pytest.mark.parametrize(
    ("kind", "file", "told"),
    [
        ("rde", "irra", "it has no visul_emb_layer.*, mlm_head.*; it looks like one of irra"),
        ("irra", "rde", "it looks like one of rde"),
        ("cfine", "tbps-clip", "it looks like one of tbps-clip"),
        ("interactreid", "interactreid-1", "no checkpoint of interactreid: it has no tbps_clip"),
        ("tbps-clip", "cfine", "it looks like one of cfine"),
        ("mllm4text", "irra", "it looks like one of irra"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, kind, file, told):
    with pytest.raises(CheckpointError, match=told.replace("*", r"\*")):
        imported(tmp_path, kind, MAKE[file]())


def test_pictures_of_another_size_and_unknown_kinds_are_refused(tmp_path):
    path = written(tmp_path, "irra", names.irra())
    with pytest.raises(CheckpointError, match="6 patches of 16 pixels"):
        import_official("irra", path)
    with pytest.raises(ConfigError, match="the nearest is 'irra'"):
        import_official("ira", path)
    with pytest.raises(ConfigError, match="image_size should be"):
        import_official("irra", path, image_size=384)
    with pytest.raises(CheckpointError, match="config.json"):
        import_official("diana", tmp_path)


# -- what else lies in the files -------------------------------------------------------------------------------------


def test_settings_in_a_class_of_an_absent_package_are_passed_over(tmp_path, monkeypatch):
    class EasyDict(dict):
        def __init__(self, **values):
            super().__init__(**values)
            self.__dict__.update(values)

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    state = names.interactreid()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "easydict", module)
        config = EasyDict(schedule=EasyDict(lr=1e-4, names=["a"]), device="cuda")
        path = saved(tmp_path, {"model": state, "optimizer": {"param_groups": []}, "epoch": 4, "config": config})
    model = import_official("interactreid", path, **WIDE)
    assert torch.equal(model.mapping.fc_out.bias, state["mapping.fc_out.bias"])


class Foreign:
    """What a stranger's file may hold: something that runs when it is unpickled."""

    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("diana")])
def test_nothing_in_a_file_is_run(tmp_path, capsys, kind):
    path = saved(tmp_path, {"model": {"a": torch.zeros(1)}, "foreign": Foreign()})
    with pytest.raises(CheckpointError, match="holds objects other than tensors"):
        import_official(kind, path)
    assert "never" not in capsys.readouterr().out


# -- as a run --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", MAKE)
def test_an_imported_run_is_taken_by_name(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    path = written(tmp_path, kind, small(MAKE[kind]()))
    size = [] if kind == "cfine" else ["-p", "image_size", str(SIZES.get(kind, TALL)["image_size"])]
    assert main(["import", kind, str(path), "--as", "theirs", *size]) == 0
    assert "reads text" in capsys.readouterr().out
    again, model = load_model("theirs"), import_official(kind, path, **SIZES.get(kind, TALL))
    images = torch.randn(2, 3, *model.image_size)
    assert_close(again.embed_image(images), model.embed_image(images))
    assert again.preprocess == model.preprocess
    picked, why = pick_model(["text"], photos=True)
    assert type(picked) is type(model) and "theirs, trained on photos" in why
    assert main(["import", kind, str(path), "--as", "theirs", *size]) == 2
    assert "There is a run theirs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["toy", ".hidden", "ViT-B-16:openai", "hf-hub:me/mine"])
def test_a_run_has_no_name_that_means_another_model(tmp_path, monkeypatch, name):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    with pytest.raises(ConfigError, match="A run cannot be called"):
        import_run("rde", written(tmp_path, "rde", names.rde()), name, **TALL)


@torch.no_grad()
def test_the_tokenizer_of_an_imported_cfine_is_kept_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    path, words = written(tmp_path, "cfine", MAKE["cfine"]()), tmp_path / "words"
    with pytest.warns(UserWarning, match="reads no words yet; text_encoder names its folder. .*hf download"):
        import_run("cfine", path, "without")
    word_tokenizer(50, 0, 2, 3).save_pretrained(words)
    model, _ = import_run("cfine", path, "with", text_encoder=str(words))
    words.rename(tmp_path / "gone")
    said = [Query("word9 word11 " * 30)]
    assert_close(load_model("with").embed(said), model.embed(said))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["diana-1", "diana"])
def test_an_imported_diana_is_taken_by_name(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("REIDLIB_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "llama").mkdir()
    source = DiaNA(DianaConfig.preset("toy", towers="transformers", text_tower=llama_folder(tmp_path / "llama")))
    folder = tmp_path / "official"
    word_tokenizer(60, 1, 2, 3).save_pretrained(folder)
    towers = {"vision": source.towers.vision.config, "llama": source.towers.language.config}
    (folder / "config.json").write_text(json.dumps({f"{name}_config": c.to_dict() for name, c in towers.items()}))
    theirs = {"towers.vision.": "vision_model.", "towers.language.": "llama."}
    state = official.renamed(source.state_dict(), theirs | {"": ""})
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors")
    size = ["-p", "image_size", str(tuple(source.image_size)), "-p", "system", source.config.system]
    assert main(["import", kind, str(folder), "--as", "theirs", *size]) == 0
    folder.rename(tmp_path / "gone")
    again, images = load_model("theirs"), torch.randn(2, 3, *source.image_size)
    assert again.name == kind and again.reads == ("text", "turns")
    said = [Query(turns=(("word9", "word10"), ("word11", "word12")))]
    assert_close(again.embed_image(images), source.eval().embed_image(images))
    assert_close(again.embed(said), source.embed(said))
