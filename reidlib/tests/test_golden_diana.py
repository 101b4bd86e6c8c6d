"""DiaNA against what the official implementation computed on a small Swin v2 and Llama."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reidlib.methods.diana import REDUCTIONS, DiaNA, refined_similarity
from reidlib.official import import_official
from reidlib.tests.golden_arrays import arrays, golden_dir, under

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def word_tokenizer(size: int, pad: int, bos: int, eos: int):
    """A tokenizer of `size` entries: the four special ones, the role words, and made-up words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {bos: "<bos>", eos: "<eos>", pad: "<pad>", 0: "<mask>"}
    words = ["<unk>", "ASSISTANT", "USER", ":"]
    names = [special.get(i) or (words.pop(0) if words else f"word{i}") for i in range(size)]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"
    )


def write_official(folder: Path, renamed: dict[str, str] | None = None) -> Path:
    """A checkpoint folder in the official layout with the golden weights."""
    sizes = json.loads((golden_dir() / "diana.json").read_text())
    config = {"vision_config": sizes["swinv2"], "llama_config": sizes["llama"], "embed_dim": sizes["embed_dim"]}
    (folder / "config.json").write_text(json.dumps(config | {"refiner_config": {"num_query": 999}}))
    weights = under(arrays("diana"), "param/")
    save_file({(renamed or {}).get(name, name): value for name, value in weights.items()}, folder / "model.safetensors")
    llama = sizes["llama"]
    ids = (llama["vocab_size"], llama["pad_token_id"], llama["bos_token_id"], llama["eos_token_id"])
    word_tokenizer(*ids).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiaNA:
    size = tuple(arrays("diana")["in/pixel_values"].shape[-2:])
    return import_official("diana", write_official(tmp_path_factory.mktemp("official")), image_size=size)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    golden = arrays("diana")
    labels = golden["in/image_ids"].flatten()
    return {"images": golden["in/pixel_values"], "turns": golden["in/input_ids"], "pids": labels}


def test_embeddings_and_attributes(model: DiaNA, batch: dict[str, Tensor]):
    golden = arrays("diana")
    real = golden["in/attention_mask"].bool()
    assert torch.equal(batch["turns"] != model.towers.pad, real)
    with torch.no_grad():
        sides = {"image": model.encode_image(batch["images"]), "text": model.encode_text(batch["turns"])}
    for name, side in sides.items():
        torch.testing.assert_close(side.pooled, golden[f"out/{name}_embeds"], **TOLERANCE)
        torch.testing.assert_close(side.attributes, golden[f"out/{name}_attributes"], **TOLERANCE)
    torch.testing.assert_close(sides["image"].dense, golden["out/image_dense"], **TOLERANCE)
    length = sides["text"].dense.shape[1]
    torch.testing.assert_close(sides["text"].dense[real[:, :length]], golden["out/text_dense"][real], **TOLERANCE)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_refined_similarity(reduction: str):
    golden = arrays("diana")
    ours = refined_similarity(golden["out/text_attributes"], golden["out/image_attributes"], reduction)
    torch.testing.assert_close(ours, golden[f"out/refine_sim_text_to_image/{reduction}"], **TOLERANCE)


def test_losses_and_gradients(model: DiaNA, batch: dict[str, Tensor]):
    golden = arrays("diana")
    losses = model.losses(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    torch.testing.assert_close(losses["itc"], golden["out/loss_itc"], **TOLERANCE)
    torch.testing.assert_close(losses["sdm"], golden["out/loss_sdm"], **TOLERANCE)
    torch.testing.assert_close(losses["refined_itc"] + losses["refined_sdm"], golden["out/loss_refine"], **TOLERANCE)
    torch.testing.assert_close(sum(losses.values()), golden["out/loss"], **TOLERANCE)
    for name, expected in under(golden, "out/grad/").items():
        torch.testing.assert_close(model.get_parameter(name).grad, expected, **TOLERANCE)


def test_the_older_name_of_the_queries_is_read_and_their_number_comes_from_the_tensor(tmp_path: Path, model: DiaNA):
    size = tuple(arrays("diana")["in/pixel_values"].shape[-2:])
    folder = write_official(tmp_path, {"refiner.attr_query_token": "refiner.query_token"})
    older = import_official("diana", folder, image_size=size)
    assert older.config.num_queries == arrays("diana")["param/refiner.attr_query_token"].shape[1]
    assert torch.equal(older.refiner.attr_query_token, model.refiner.attr_query_token)
