"""The texts of the corpus "sentences": open vocabulary, English and Mandarin, drawn from a grammar with punctuation that is heard.

Notable choices
- `words/english.txt` and `words/mandarin.txt` hold words and grammar in one notation: a list of words or phrases under a name, and
  `{name}` draws from it. Words stand in lists by what they can do, so one can eat an apple and cannot drive it;
- `{name:form}` inflects the word that was drawn: an English plural, a form of a verb; in Mandarin the measure word of a noun;
- numbers, times and dates come from the training texts of the numbers corpus, so its held-out texts stay unheard here too;
- a text belongs to a split by the hash of its words (`vox.phrases.split_of`): drawing goes on until one of the right split appears.
"""

import functools
import random
import re
from pathlib import Path

from vox.phrases import LANGUAGES, MONTHS, ORDINALS, SPLITS, kinds, split_of
from vox.text import DIGITS, cardinal, speaking_seconds

FILES = dict(zip(LANGUAGES, ("english", "mandarin"), strict=True))
SECONDS = (2.2, 6.3)  # by `speaking_seconds`, which counts no pause
SLOT = re.compile(r"\{(\w+)(?::([^{}]*))?\}")  # an innermost one, so that a form may hold slots of its own


@functools.cache
def lists(language: str) -> dict[str, tuple[str, ...]]:
    """Every list of a language's file: {name: its words or phrases}. Raises ValueError for another language."""
    if language not in FILES:
        raise ValueError(f"no sentences in {language!r}: use {' or '.join(LANGUAGES)}")
    text = (Path(__file__).parent / "words" / f"{FILES[language]}.txt").read_text(encoding="utf-8")
    text = re.sub("^#.*\n", "", text, flags=re.MULTILINE)
    words = {name: tuple(body.replace("_", " ") for body in body.split()) for name, body in re.findall(r"\[(\w+)\]\n([^\[<]*)", text)}
    phrases = {name: tuple(body.split("\n")) for name, body in re.findall(r"<(\w+)>\n((?:[^\n\[<]+\n)+)", text)}
    return words | {name: tuple(filter(None, body)) for name, body in phrases.items()}


def draw(source: random.Random, language: str, split: str = "train") -> str:
    """A sentence, or a little dialogue, of a split: about 2 to 8 seconds of speech, in "en-us" or "cmn". Moves `source` on.

    Raises ValueError for another language or split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
    lists(language)
    while True:
        text = _finished(_expanded("{sentence}", source, language), language)
        if SECONDS[0] <= speaking_seconds(text) <= SECONDS[1] and split_of(text) == split:
            return text


def _expanded(text, source, language):
    """`text` with every slot filled."""

    def fill(slot):
        name, form = slot.groups()
        figures = _figures(name, source, language)
        if figures:
            return figures
        entry = source.choice(lists(language)[name])
        if "{" in entry:
            return entry.replace(":*}", f":{form or ''}}}")
        return _plural(entry) if form == "+" else _verb(entry, form) if language == "en-us" else _counted(entry, form)

    while "{" in text:
        text = SLOT.sub(fill, text)
    return text


def _figures(name, source, language):
    """What a slot of numbers says, None if it is another slot."""
    english = language == "en-us"
    if name in ("time", "date"):
        return source.choice(kinds(language, "train")[2 if name == "time" else 3])
    if name == "number":
        return source.choice(kinds(language, "train")[source.choice((0, 1))][3:])  # not zero, one and two
    if name == "count":  # how many things; one Chinese character, for the measure word follows it
        return cardinal(source.randint(2, 20), "en") if english else source.choice("两三四五六七八九十几")
    if name == "small":
        return cardinal(source.randint(3, 60), "en" if english else "zh")
    if name == "ordinal":
        return source.choice(ORDINALS)
    if name == "year":
        year = source.randint(1930, 1999)  # someone may live there since
        digits = "".join(DIGITS[int(digit)] for digit in str(year)) + "年"
        return f"nineteen {cardinal(year % 100, 'en')}" if english else digits
    return None


def _plural(entry):
    """The plural of an English noun, "child:children" or "boy"."""
    word, *irregular = entry.split(":")
    return irregular[0] if irregular else _with_s(word)


def _with_s(word):
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search("(s|x|z|ch|sh)$", word) else f"{word}s"


def _verb(entry, form):
    """A form of an English verb, "eat:ate:eaten" or "walk" or "look at"; the bare word without a form."""
    word, *irregular = entry.split(":")
    first, space, rest = word.partition(" ")
    if form == "s":
        return ("goes" if first == "go" else _with_s(first)) + space + rest
    if form in ("ed", "en") and irregular:
        return irregular[0] if form == "ed" or len(irregular) == 1 else irregular[1]
    if form == "ing" and len(irregular) == 3:
        return irregular[2]
    if form not in ("ed", "en", "ing"):
        return word
    if re.fullmatch("([^aeiou]|(?<=q)u)*[aeiou][bdgklmnprt]", first):  # stop, stopping
        first += first[-1]
    if form == "ing":
        return re.sub("(?<=[^eoy])e$", "", first) + "ing" + space + rest
    return re.sub("e$", "", re.sub("(?<=[^aeiou])y$", "i", first)) + "ed" + space + rest


def _counted(entry, form):
    """A Mandarin noun "书:本" with its measure word: 三本书 for 三, 那本旧书 for 那旧; the bare word without a form. A verb takes 了."""
    word, _, measure = entry.partition(":")
    if form == "了":  # 买了; a game brings its verb, 足球:踢, 踢了足球
        return f"{measure}了{word}" if measure else f"{word}了"
    return word if form is None else form[:1] + measure + form[1:] + word


def _finished(text, language):
    """Articles and capitals of a filled English sentence; a Mandarin one as it is."""
    if language == "cmn":
        return text
    text = re.sub(r"\b(a)(?= (?!uni|use|euro|one)([aeiou]|hour|honest))", "an", text)
    text = re.sub(rf"\b({'|'.join(MONTHS)})\b(?= [a-z]+)|(?<=of )({'|'.join(MONTHS)})\b", lambda month: month[0].title(), text)
    return re.sub(r'(^"?|[.:?!"] "|[.!?] )([a-z])', lambda first: first[1] + first[2].upper(), text)
