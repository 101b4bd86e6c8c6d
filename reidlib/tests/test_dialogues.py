"""Dialogues as text and as token ids: layout, cutting to rounds, and that cutting ids equals cutting text."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidlib.backbones.clip import PAD, create_clip
from reidlib.backbones.swin_llama import LLAMA, TransformerTowers, Vocabulary, swin
from reidlib.backbones.turns import ClipTowers
from reidlib.data import dialogues as d
from reidlib.errors import ReidError

TALK = [("What top?", "A red coat."), ("Any bag?", "no"), ("Shoes?", "White ones, with\na stripe!")]
LLAMA3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def llama3_like(folder: Path) -> Path:
    """A byte-level tokenizer that, as Llama 3's, merges punctuation with the line break after it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<bos>", "<eos>"])
    raw.train_from_iterator([d.serialise(TALK, d.SYSTEM), "ASSISTANT: a.\nUSER: b?\nASSISTANT: c!\n"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    return folder


def tiny_llama(vocabulary_size: int):
    from transformers import LlamaConfig, LlamaModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaModel(LlamaConfig(**(LLAMA["toy"] | small | {"vocab_size": vocabulary_size})))


@pytest.fixture(scope="module", params=["llama3-like", "clip-bpe", "clip"])
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    if request.param == "clip":
        return ClipTowers(create_clip("toy-random"), max_length=10_000)
    if request.param == "clip-bpe":
        vocabulary = Vocabulary.clip_bpe()
    else:
        vocabulary = Vocabulary.pretrained(str(llama3_like(tmp_path_factory.mktemp("tokenizer"))))
    return TransformerTowers(swin("toy", (128, 64)), tiny_llama(300), vocabulary, max_length=10_000)


def rows(ids: torch.Tensor, filler: int) -> list[list[int]]:
    return [row[row != filler].tolist() for row in ids]


def test_layout():
    text = d.serialise(TALK, "Be kind.")
    assert text == (
        "Be kind.\n\nASSISTANT: What top?\nUSER: A red coat.\nASSISTANT: Any bag?\nUSER: no\n"
        "ASSISTANT: Shoes?\nUSER: White ones, with a stripe!"
    )
    assert d.serialise(TALK[:1]).startswith("ASSISTANT: What")


def test_a_caption_gets_one_of_the_questions_always_the_same():
    questions = {d.caption_turn(f"caption {i}")[0][0] for i in range(100)}
    assert questions == set(d.CAPTION_QUESTIONS)
    assert d.caption_turn("a man", ["Who?"]) == [("Who?", "a man")]
    assert d.caption_turn("a man") == d.caption_turn("a man")


def test_clean_caption():
    assert d.clean_caption('A "Man" (tall);  red-coat.') == "a man tall red-coat"


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_cutting_ids_equals_cutting_text(towers, n: int):
    ids = towers.tokenize([TALK, TALK[:2]])
    cut = towers.keep_rounds(ids, torch.tensor([n, n]))
    assert rows(cut, towers.pad) == rows(towers.tokenize([TALK[:n], TALK[:2][:n]]), towers.pad)


messages = st.text("ab AB.,?!'\n1é-", min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(dialogue=st.lists(st.tuples(messages, messages), min_size=1, max_size=5), data=st.data())
def test_ids_of_the_first_rounds_are_a_prefix(towers, dialogue: list, data: st.DataObject):
    n = data.draw(st.integers(1, len(dialogue)))
    ids = towers.tokenize([dialogue])
    (whole,), (part,) = rows(ids, towers.pad), rows(towers.tokenize([dialogue[:n]]), towers.pad)
    assert whole[: len(part) - 1] == part[:-1]
    assert rows(towers.keep_rounds(ids, torch.tensor([n])), towers.pad) == [part]
    assert int(towers.rounds(ids)[ids != towers.pad].max()) == len(dialogue)


def test_words_read_back(towers):
    said = "".join(towers.words(towers.tokenize([TALK])[0])).lower()
    assert "redcoat" in said and "anybag" in said


def test_rows_are_padded_to_the_longest_of_the_batch(towers):
    ids = towers.tokenize([TALK, TALK[:1]])
    assert (ids[0] != towers.pad).all() and ids[1, -1] == towers.pad


def test_only_words_may_be_masked(towers):
    ids = towers.tokenize([TALK, TALK[:1]])
    free, all_words = towers.may_mask(ids, roles=False), towers.may_mask(ids, roles=True)
    assert not (free & ~all_words).any() and not all_words[ids == towers.pad].any()
    said = "".join(towers.words(ids[0][free[0]])).lower()
    assert said == "whattop?aredcoat.anybag?noshoes?whiteones,withastripe!"
    if isinstance(towers, TransformerTowers):
        assert "assistant" in "".join(towers.words(ids[0][all_words[0]])).lower()
        assert not all_words[:, 0].any()  # the token that begins a text


def test_what_is_too_long_is_cut_at_its_end_and_counted():
    vocabulary = Vocabulary.clip_bpe()
    towers = TransformerTowers(swin("toy", (128, 64)), tiny_llama(300), vocabulary, system="", max_length=20)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 20 tokens"):
        ids = towers.tokenize([TALK, TALK[:1]])
    assert ids.shape == (2, 20) and ids[0, 0] == vocabulary.bos


def test_clip_reads_all_turns_as_one_text_and_each_end_sums_up_the_turns_so_far():
    towers = ClipTowers(create_clip("toy-random"), max_length=100).eval()
    ids = towers.tokenize([TALK, TALK[:1]])
    with torch.no_grad():
        first = towers.clip.encode_text(towers.clip.tokenize([" ".join(TALK[0])]))[0]
        pooled, dense = towers.encode_text(ids)
        cut, _ = towers.encode_text(towers.tokenize([TALK[:2]]))
    ends = dense[0][ids[0] == towers.end]
    torch.testing.assert_close(ends[:2], torch.stack([first, cut[0]]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, torch.stack([ends[2], first]), atol=1e-5, rtol=1e-4)
    assert towers.pad == PAD and dense.shape == (*ids.shape, towers.text_width)


def test_clip_positions_are_stretched_and_short_texts_stay_what_they_were():
    plain, clip = create_clip("toy-random"), create_clip("toy-random")
    clip.load_state_dict(plain.state_dict())
    towers = ClipTowers(clip, max_length=200).eval()
    ids = plain.tokenize(["a man in a red coat"])
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(ids), plain.encode_text(ids), atol=1e-5, rtol=1e-4)
        old, new = plain.model.positional_embedding, clip.model.positional_embedding
    assert new.shape == (200, old.shape[1])
    torch.testing.assert_close(new[[0, 19, 20, 199]], old[[0, 19, 20, 76]])
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than 200 tokens"):
        long = towers.tokenize([TALK * 20])
    assert long.shape == (1, 200) and long[0, -1] == towers.end


def test_a_model_that_is_not_here_is_named_with_what_to_fetch():
    with pytest.raises(ReidError, match="hf download nobody/no-such-model --local-dir"):
        Vocabulary.pretrained("nobody/no-such-model")
    with pytest.raises(ReidError, match="hf download nobody/no-swin"):
        swin("nobody/no-swin", (128, 64))
