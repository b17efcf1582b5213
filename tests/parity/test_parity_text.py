"""Token ids equal those of the official wrapper around `transformers.LlamaTokenizerFast`."""

import json

import pytest
import reference
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
from transformers import LlamaTokenizerFast

from vox.text import CHARACTERS, SPECIAL, BPETokenizer, CharTokenizer, cardinal, load_tokenizer

TEXTS = [
    "four hundred and twelve",
    "nine o'clock, half past three",
    "你好世界",
    "世界你好 hello 你好",
    "hello你好, the world世界!",
    "四百一十二",
    "二十五 the one",
    "a",
    "好",
    "then he won on one",
    "ÀÉ naïve ✓ 𝄞 €",  # bytes
    "龘 世界 龘",  # a character the vocabulary does not hold
    "<|audio_end|>",  # a special token written in the text
]


def official(folder):
    return reference.mask_multichar_chinese_tokens(LlamaTokenizerFast.from_pretrained(folder))


def train_llama_like(folder):
    """Byte pairs learnt from mixed text without splitting at spaces, so that Chinese words become tokens, some with a space's mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    lines = [f"{cardinal(n, 'en')} 你好世界 {cardinal(n, 'zh')}" for n in range(0, 9999, 7)] + ["hello the world 世界 你好 " * 50]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, max_token_length=8, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = []  # the trainer marks the bytes as special too; in a Llama file they are plain tokens
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    made = {"written": reference.save_tokenizer(root / "written"), "trained": train_llama_like(root / "trained")}
    LlamaTokenizerFast.from_pretrained(made["written"]).save_pretrained(root / "resaved")
    return made | {"resaved": root / "resaved"}


@pytest.mark.parametrize("kind", ["written", "trained", "resaved"])
def test_byte_pair_ids_are_official(folders, kind):
    ours, theirs = load_tokenizer(folders[kind]), official(folders[kind])
    assert isinstance(ours, BPETokenizer)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text), text
    assert ours.vocab_size == len(theirs.tokenizer)


@pytest.mark.parametrize("kind", ["written", "trained"])
def test_the_split_matters(folders, kind):
    """The texts hold tokens of several Chinese characters, with and without the mark of a space; without the split they would differ."""
    ours = load_tokenizer(folders[kind])
    assert len(ours.words) >= 3
    plain = [ours.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert sum(ours.encode(text) != ids for text, ids in zip(TEXTS, plain, strict=True)) >= 3


def test_trailing_white_space_is_dropped(folders):
    """The one intended difference: ends are stripped and runs collapsed, since transformers 4 and 5 disagree about a leading space."""
    ours, theirs = load_tokenizer(folders["written"]), official(folders["written"])
    assert ours.encode(" the \n one ") == theirs("the one")


@pytest.mark.parametrize("ours", [CharTokenizer(), CharTokenizer.learn([cardinal(n, "en") for n in range(0, 999, 7)], 1024)])
def test_character_ids_are_official(tmp_path, ours):
    ours.save(tmp_path)
    theirs = official(tmp_path)
    numbers = [cardinal(n, language) for n in range(0, 9999, 97) for language in ("en", "zh")]
    for text in [CHARACTERS.strip(), "half past three, please!", "二零二四年十二月五日", "it's (nine)", "你好 hello 你好", *numbers]:
        assert theirs(text) == ours.encode(text), text
    assert len(theirs.tokenizer) == ours.vocab_size
    assert {i: theirs.tokenizer.convert_ids_to_tokens(i) for i in SPECIAL} == SPECIAL
