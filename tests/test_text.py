"""Words for numbers, one spelling per text, ids there and back."""

import json
import unicodedata

import pytest

from vox.text import (
    AUDIO_END,
    AUDIO_START,
    CHARACTERS,
    SPECIAL,
    BPETokenizer,
    CharTokenizer,
    UnknownCharacter,
    cardinal,
    join_texts,
    load_tokenizer,
    normalise,
    speaking_seconds,
    split_text,
)


@pytest.mark.parametrize(
    ("n", "english", "mandarin"),
    [
        (0, "zero", "零"),
        (9, "nine", "九"),
        (10, "ten", "十"),
        (12, "twelve", "十二"),
        (20, "twenty", "二十"),
        (21, "twenty one", "二十一"),
        (100, "one hundred", "一百"),
        (101, "one hundred and one", "一百零一"),
        (110, "one hundred and ten", "一百一十"),
        (222, "two hundred and twenty two", "二百二十二"),
        (412, "four hundred and twelve", "四百一十二"),
        (1000, "one thousand", "一千"),
        (1005, "one thousand and five", "一千零五"),
        (1010, "one thousand and ten", "一千零一十"),
        (1100, "one thousand one hundred", "一千一百"),
        (2000, "two thousand", "两千"),
        (2002, "two thousand and two", "两千零二"),
        (3040, "three thousand and forty", "三千零四十"),
        (9999, "nine thousand nine hundred and ninety nine", "九千九百九十九"),
    ],
)
def test_cardinal(n, english, mandarin):
    assert cardinal(n, "en") == english
    assert cardinal(n, "zh") == mandarin


def english_value(words):
    """The number that English words say, added up word by word."""
    names = {cardinal(n, "en"): n for n in [*range(21), *range(30, 100, 10)]}
    total = part = 0
    for word in words.replace(" and ", " ").split():
        if word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = part * 1000, 0
        else:
            part += names[word]
    return total + part


def mandarin_value(text):
    """The number that Mandarin characters say, added up unit by unit."""
    total, digit = 0, None
    for character in text:
        if character in "十百千":
            total += (1 if digit is None else digit) * {"十": 10, "百": 100, "千": 1000}[character]
            digit = None
        elif character != "零":
            digit = 2 if character == "两" else "零一二三四五六七八九".index(character)
    return total + (digit or 0)


def test_every_cardinal_says_its_number():
    for n in range(10000):
        assert english_value(cardinal(n, "en")) == n
        assert mandarin_value(cardinal(n, "zh")) == n


@pytest.mark.parametrize(("n", "language"), [(-1, "en"), (10000, "zh"), (5, "fr")])
def test_cardinal_refuses(n, language):
    with pytest.raises(ValueError, match=str(n) if language != "fr" else "fr"):
        cardinal(n, language)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("  four \t hundred\nand twelve ", "four hundred and twelve"),
        ("412", "four hundred and twelve"),
        ("Room 412.", "Room four hundred and twelve."),
        ("第１２号，好。", "第十二号,好."),
        ("412号", "四百一十二号"),
        ("nine 12月", "nine 十二月"),
        ("三点 10 minutes", "三点 ten minutes"),
        ("2024年", "二零二四年"),
        ("1,000", "one thousand"),
        ("“hi”…", '"hi"...'),
        ("ｆｕｌｌ　ｗｉｄｔｈ！", "full width!"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("a – b", "a - b"),
        ("covid-19 - 5", "covid-nineteen - five"),
    ],
)
def test_normalise(text, spoken):
    assert normalise(text) == spoken
    assert normalise(spoken) == spoken


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b"])
def test_empty_text_is_refused(text):
    for encode in (normalise, CharTokenizer().encode):
        with pytest.raises(ValueError, match="empty"):
            encode(text)


@pytest.mark.parametrize("number", ["3.5", "12:30", "1/2", "007", "10000", "1,000,000", "mp3", "3rd", "5pm", "-5"])
def test_a_number_whose_reading_is_a_guess_is_refused(number):
    with pytest.raises(ValueError, match=f"'{number}'"):
        normalise(f"say {number} now")


def test_ids_there_and_back():
    tokenizer = CharTokenizer()
    for text in [CHARACTERS.strip(), "half past three", "四百一十二, ok?", *(cardinal(n, "zh") for n in range(0, 9999, 11))]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("NINE 9") == tokenizer.encode("nine nine")


def test_ids_are_small_distinct_and_leave_the_marks_alone():
    tokenizer = CharTokenizer()
    ids = [tokenizer.ids[character] for character in CHARACTERS]
    assert len(set(ids)) == len(CHARACTERS) and not set(ids) & {0, 101, 102, 103, 104}
    assert tokenizer.vocab_size <= 512 and max(ids) < tokenizer.vocab_size
    assert (AUDIO_START, AUDIO_END) == (101, 102) and all(SPECIAL[i] for i in (0, 101, 102, 103, 104))
    assert unicodedata.normalize("NFKC", CHARACTERS) == CHARACTERS.lower() == CHARACTERS
    # A saved model depends on these.
    assert [tokenizer.ids[character] for character in " az零月忙"] == [4, 5, 30, 42, 81, 511]


def test_words_of_a_corpus_become_tokens():
    tokenizer = CharTokenizer.learn(["four hundred and four", "FOUR hundred, 404", "四百零四"], vocab=600)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("four hundred four")] == ["four", " ", "hundred", " ", "four"]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("四百 fort")][:3] == ["四", "百", " "]  # Chinese characters stay single
    assert tokenizer.encode("x四百") == CharTokenizer().encode("x四百")  # the characters keep their ids
    assert 512 < tokenizer.vocab_size <= 600 and max(tokenizer.tokens) == tokenizer.vocab_size - 1
    small = CharTokenizer.learn(["four hundred and four"], vocab=514)
    assert small.vocab_size == 514 and small.decode(small.encode("four hundred")) == "four hundred"
    assert CharTokenizer.learn(["four"], vocab=512).ids == CharTokenizer().ids
    with pytest.raises(ValueError, match="512 ids and vocab is 511"):
        CharTokenizer.learn(["four"], vocab=511)


def test_special_ids_decode_to_nothing_and_unknown_ids_are_refused():
    tokenizer = CharTokenizer()
    assert tokenizer.decode([*tokenizer.encode("one"), 0, 101, 102]) == "one"
    for bad in (-1, 512):
        with pytest.raises(ValueError, match=str(bad)):
            tokenizer.decode([bad])


def test_unknown_characters_are_named():
    with pytest.raises(UnknownCharacter) as caught:
        CharTokenizer().encode("café ☕ café")
    assert caught.value.characters == "é☕"
    assert "U+00E9" in str(caught.value) and "café" in str(caught.value)
    with pytest.raises(UnknownCharacter, match="U\\+D800"):
        CharTokenizer().encode("\ud800")


@pytest.mark.parametrize(
    ("prompt", "text", "joined"),
    [
        ("nine", "ten", "nine. ten"),
        ("nine ", "ten", "nine. ten"),
        ("nine", " ten", "nine. ten"),
        ("nine,", "ten", "nine, ten"),
        ("nine?", " ten", "nine? ten"),
        ("九", "十", "九。十"),
        ("九，", "十", "九，十"),
        ("nine", "十", "nine.十"),
        ("九", "ten", "九。ten"),
        ("九。", "ten", "九。ten"),
        ("", "ten", "ten"),
        ("nine", "", "nine"),
    ],
)
def test_join(prompt, text, joined):
    assert join_texts(prompt, text) == joined


def test_save_and_load_both_kinds(tmp_path):
    CharTokenizer().save(tmp_path / "characters")
    assert [path.name for path in sorted((tmp_path / "characters").iterdir())] == ["tokenizer.json", "tokenizer_config.json"]
    loaded = load_tokenizer(tmp_path / "characters")
    assert isinstance(loaded, CharTokenizer) and loaded.ids == CharTokenizer().ids

    words = CharTokenizer.learn(["four hundred and four"], vocab=540)
    words.save(tmp_path / "words")
    again = load_tokenizer(tmp_path / "words")
    assert again.ids == words.ids and again.encode("four and") == words.encode("four and") and len(words.encode("four")) == 1

    released = tmp_path / "released"  # the same files without our mark are read as byte pairs
    CharTokenizer().save(released)
    config = json.loads((released / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("characters")
    (released / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    pairs = load_tokenizer(released)
    assert isinstance(pairs, BPETokenizer)
    assert pairs.encode("nine 九") == CharTokenizer().encode("nine 九")
    assert pairs.decode(pairs.encode("nine")).replace(" ", "") == "nine"
    pairs.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode("nine 九") == pairs.encode("nine 九")
    pairs.save(released)  # onto itself: nothing is lost
    assert load_tokenizer(released).vocab_size == 512


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer_config.json is not readable"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------------------- long texts


@pytest.mark.parametrize(
    "text, seconds, pieces",
    [
        ("one two.", 1.0, ["one two."]),
        ("  one two.\n", 9.0, ["  one two.\n"]),  # short enough: as it is
        ("One two three. Four five six! Seven?", 1.0, ["One two three.", "Four five six!", "Seven?"]),
        ("One two three. Four five six! Seven?", 1.8, ["One two three. Four five six!", "Seven?"]),
        ('He said: "One two three." And he left.', 1.5, ['He said: "One two three."', "And he left."]),
        ("It is 3.5 or 1,000 at 12:30 for a long while. Yes.", 2.9, ["It is 3.5 or 1,000 at 12:30 for a long while.", "Yes."]),
        ("你好世界。今天很好！明天呢？", 1.5, ["你好世界。", "今天很好！", "明天呢？"]),
        ("one two three four, five six seven eight. nine", 1.2, ["one two three four,", "five six seven eight.", "nine"]),
        ("there were 3,000 people, or more at 12:30 today, too", 0.9, ["there were 3,000 people,", "or more at 12:30 today,", "too"]),
        ("共有３，０００人，还有1,200人", 1.6, ["共有３，０００人，", "还有1,200人"]),
        ("first line\nsecond line\n\nthird", 0.9, ["first line", "second line", "third"]),
        ("one... two!! three four five six", 0.5, ["one...", "two!!", "three four five six"]),
        ("wordswithoutanyendtothemwhichnobodycouldcutanywhere", 1.0, ["wordswithoutanyendtothemwhichnobodycouldcutanywhere"]),
    ],
)
def test_split_text(text, seconds, pieces):
    assert split_text(text, seconds) == pieces


def test_speaking_seconds_are_about_right():
    """Against the synthesiser, in both languages."""
    from vox import espeak

    for words, language in (("four hundred and twenty seven thousand", "en-us"), ("一千二百三十四", "cmn")):
        spoken = len(espeak.reference(words, language, espeak.speakers()[0])) / 16000
        assert 0.5 < speaking_seconds(words) / spoken < 2
