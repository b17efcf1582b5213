"""The corpus "sentences": vocabulary, splits, inflection, lengths, and its way through `corpus.load`."""

import random
import re

import pytest

from vox import corpus, phrases, plots, preset, sentences
from vox.text import MORE_CHARACTERS, CharTokenizer, speaking_seconds


def drawn(language, split="train", count=10000, seed=0):
    source = random.Random(seed)
    return [sentences.draw(source, language, split) for _ in range(count)]


@pytest.fixture(scope="module")
def many():
    return {language: drawn(language) for language in phrases.LANGUAGES}


def test_the_vocabulary_is_open(many):
    words = {word for text in many["en-us"] for word in re.findall("[a-z'-]+", text.lower())}
    characters = {character for text in many["cmn"] for character in text if "\u4e00" <= character <= "\u9fff"}
    assert len(words) >= 2500 and len(characters) >= 1300
    assert len(corpus.speakers("train")) >= 200
    for texts in many.values():
        assert len(set(texts)) > 0.9 * len(texts)  # short patterns such as the hour of a party come again by chance
    english, mandarin = ("".join(many[language]) for language in phrases.LANGUAGES)
    assert set(',.?!:"') <= set(english) and set("，。？！：“”") <= set(mandarin)
    assert not re.search(r"[^A-Za-zé ,.?!:\"'-]", english) and not re.search(r"[\w\s]", re.sub("[\u4e00-\u9fff]", "", mandarin))


def test_every_list_is_used_and_every_slot_has_one():
    figures = {"time", "date", "number", "count", "small", "ordinal", "year"}
    for language in phrases.LANGUAGES:
        lists = sentences.lists(language)
        slots = {slot for entries in lists.values() for entry in entries for slot in re.findall(r"\{(\w+)", entry)}
        assert slots - figures == set(lists) - {"sentence"}
        assert all(entries for entries in lists.values())


def test_a_seed_says_everything_and_splits_share_no_words():
    for language in phrases.LANGUAGES:
        assert drawn(language, count=50) == drawn(language, count=50) != drawn(language, count=50, seed=1)
        parts = {split: {re.sub(r"[^\w' ]", "", text.lower()) for text in drawn(language, split, 400)} for split in phrases.SPLITS}
        assert not parts["train"] & parts["test"] and not parts["train"] & parts["validation"] and not parts["test"] & parts["validation"]
        for split, texts in parts.items():
            assert {phrases.split_of(text) for text in texts} == {split}
    assert phrases.split_of("Is it cold today?") == phrases.split_of("is it cold, today!")


def test_numbers_held_out_elsewhere_are_not_heard_here(many):
    held_out = {text for split in ("validation", "test") for text in phrases.kinds("cmn", split)[1]}
    heard = {number for text in many["cmn"] for number in re.findall("有([零一二三四五六七八九十百千两]+)公里", text)}
    assert len(heard) > 20 and not heard & held_out


def test_the_tokenizer_of_small_spells_every_text_and_figures_draw_it(many):
    tokenizer, vocab = CharTokenizer(MORE_CHARACTERS), preset("small").vocab
    assert tokenizer.vocab_size == 3802 <= vocab and len(set(MORE_CHARACTERS)) == len(MORE_CHARACTERS)
    assert all(tokenizer.ids[character] == i for character, i in CharTokenizer().ids.items())  # ids of saved models stay
    for text in many["en-us"][:2000] + many["cmn"][:2000]:
        assert tokenizer.decode(tokenizer.encode(text))
    assert "U+" not in plots.drawable(MORE_CHARACTERS, columns=10**6)


def test_sentences_take_two_to_eight_seconds_to_say(many):
    for texts in many.values():
        lengths = [speaking_seconds(text) for text in texts]
        assert min(lengths) >= 2.2 and max(lengths) <= 6.3 and 3 < sum(lengths) / len(lengths) < 4.5


def test_words_are_inflected():
    verbs = {
        ("stop", "ing"): "stopping",
        ("visit", "ed"): "visited",
        ("carry", "ed"): "carried",
        ("carry", "s"): "carries",
        ("watch", "s"): "watches",
        ("go:went:gone", "s"): "goes",
        ("go:went:gone", "ed"): "went",
        ("write:wrote:written", "en"): "written",
        ("write:wrote:written", "ing"): "writing",
        ("free", "ing"): "freeing",
        ("look at", "ed"): "looked at",
        ("buy:bought", "en"): "bought",
        ("play", ""): "play",
        ("steer", "ing"): "steering",
    }
    assert {case: sentences._verb(*case) for case in verbs} == verbs
    nouns = {"child:children": "children", "cherry": "cherries", "toy": "toys", "bus:buses": "buses", "fox": "foxes"}
    assert {noun: sentences._plural(noun) for noun in nouns} == nouns
    cases = {("书:本", "三"): "三本书", ("书:本", "那旧的"): "那本旧的书", ("书:本", None): "书"}
    cases |= {("买", "了"): "买了", ("足球:踢", "了"): "踢了足球"}
    assert {case: sentences._counted(*case) for case in cases} == cases
    finished = sentences._finished('a old man said: "it is a honest uniform on the third of may."', "en-us")
    assert finished == 'An old man said: "It is an honest uniform on the third of May."'


def test_unknown_languages_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'de'.*en-us or cmn"):
        sentences.draw(random.Random(0), "de")
    with pytest.raises(ValueError, match="'dev'"):
        sentences.draw(random.Random(0), "cmn", "dev")
    for name, message in (("sentences:x", "unknown corpus"), ("phrases", "use numbers, voices, words, sentences")):
        with pytest.raises(ValueError, match=message):
            corpus.load(name, cache=tmp_path)


def test_the_sentences_corpus(tmp_path):
    data = corpus.load("sentences", "test", hours=0.01, cache=tmp_path)
    assert 36 <= sum(data["seconds"]) < 36 + 10 and set(data["language"]) == set(phrases.LANGUAGES)
    assert min(data["seconds"]) > 1 and max(data["seconds"]) < 10
    assert set(data["speaker"]) <= set(corpus.speakers("test"))
    assert all(phrases.split_of(text) == "test" for text in data["text"])
    row = data[0]
    again = corpus.reference(row["text"], row["language"], row["speaker"])
    assert abs(corpus.wav(row) - again).max() < 1e-4
    (folder,) = tmp_path.glob("sentences-*/")
    before = folder.stat().st_mtime_ns
    assert corpus.load("sentences", "test", hours=0.01, cache=tmp_path)["text"] == data["text"]
    assert folder.stat().st_mtime_ns == before  # read, not made again
    assert corpus.load("numbers", "test", hours=0.005, cache=tmp_path)["text"][0] != data["text"][0]


def test_syllables_that_espeak_lacks_are_left_out():
    """It spells xiong and qiong in English letters."""
    entries = "".join(entry for entries in sentences.lists("cmn").values() for entry in entries)
    assert "猫" in entries and not set("熊凶穷胸兄") & set(entries)
