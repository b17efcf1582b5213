"""The texts of the corpora "numbers" (English and Mandarin cardinals, clock times and dates, written as words) and "words".

Notable choices
- everything is lower case and without punctuation (but o'clock), so a text holds only what is heard;
- a hash of the text decides its split, whatever else is asked for: no held-out text can slip into training;
- "words" are the same words in random order. Nothing said so far tells which comes next, so whoever learns on them has to read.
"""

import calendar
import functools
import hashlib
import itertools
import random
import re

from vox.text import cardinal

LANGUAGES = ("en-us", "cmn")
SPLITS = ("train", "validation", "test")
MONTHS = "january february march april may june july august september october november december".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
LENGTHS = (1, 1, 1, 2, 2, 3, 5, 8)  # of the texts of "words": a word alone is the easiest to learn, and most are short


def split_of(text: str) -> str:
    """The split a text of a synthetic corpus belongs to, by a hash of its words: 90 % train, 5 % validation, 5 % test.

    Capitals and punctuation do not count, so a question cannot be held out while training hears it as a statement.
    """
    words = re.sub(r"[^\w' ]", "", text.lower())
    share = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") % 100
    return "train" if share < 90 else "validation" if share < 95 else "test"


def texts(language: str, split: str = "train") -> list[str]:
    """All texts of the numbers corpus in "en-us" or "cmn" that belong to a split. Raises ValueError for another language or split."""
    return list(itertools.chain.from_iterable(kinds(language, split)))


def draw(source: random.Random, language: str, split: str = "train") -> str:
    """A text of the numbers corpus, the four kinds equally often. Moves `source` on; raises ValueError as `texts` does."""
    return source.choice(source.choice(kinds(language, split)))


def draw_words(source: random.Random, language: str, split: str = "train") -> str:
    """A text of the corpus "words": one to eight of its `words`, few more often than many; each word is as likely as another.

    Moves `source` on; raises ValueError as `texts` does.
    """
    space = "" if language == "cmn" else " "
    while True:
        text = space.join(source.choice(words(language)) for _ in range(source.choice(LENGTHS)))
        if split_of(text) == split:
            return text


@functools.cache
def words(language: str) -> tuple[str, ...]:
    """The English words or Mandarin characters that the training texts of "numbers" are made of, in alphabetical order."""
    return tuple(sorted(set(itertools.chain.from_iterable(text if language == "cmn" else text.split() for text in texts(language)))))


@functools.cache
def kinds(language, split):
    """The texts of a split in the four lists drawn from equally often: cardinals below a thousand and above, clock times, dates."""
    if language not in LANGUAGES or split not in SPLITS:
        raise ValueError(f"no texts for {language!r} and {split!r}: use {' or '.join(LANGUAGES)}, and {', '.join(SPLITS)}")
    tongue, times, dates = ("en", _english_times, _english_dates) if language == "en-us" else ("zh", _mandarin_times, _mandarin_dates)
    clock = (times(hour, minute) for hour in range(24) for minute in range(60))
    days = [(month, day) for month in range(1, 13) for day in range(1, calendar.monthrange(2024, month)[1] + 1)]
    years = ([1900 + (7 * i + 21 * k) % 200 for k in range(10)] for i in range(len(days)))  # ten years a day, spread over two centuries
    known = ((day, year) for day, tens in zip(days, years, strict=True) for year in [None, *tens])
    calendars = (dates(*day, year) for day, year in known if day != (2, 29) or not year or calendar.isleap(year))
    lists = (
        [cardinal(n, tongue) for n in range(1000)],
        [cardinal(n, tongue) for n in range(1000, 10000)],
        itertools.chain.from_iterable(clock),
        itertools.chain.from_iterable(calendars),
    )
    return tuple([text for text in dict.fromkeys(kind) if split_of(text) == split] for kind in lists)


def _english_times(hour, minute):
    part = "at night" if hour < 5 or hour > 21 else "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    this, following = cardinal(hour % 12 or 12, "en"), cardinal((hour + 1) % 12 or 12, "en")
    spoken = "o'clock" if not minute else f"oh {cardinal(minute, 'en')}" if minute < 10 else cardinal(minute, "en")
    yield f"{this} {spoken} {part}"
    away = min(minute, 60 - minute)
    unit = "" if away % 5 == 0 else " minute" if away == 1 else " minutes"
    count = {15: "quarter", 30: "half"}.get(away) or cardinal(away, "en") + unit
    yield f"{this} o'clock" if not minute else f"{count} past {this}" if minute <= 30 else f"{count} to {following}"


def _mandarin_times(hour, minute):
    part = "凌晨" if hour < 6 else "上午" if hour < 12 else "中午" if hour < 13 else "下午" if hour < 18 else "晚上"
    spoken = {0: "整", 15: "一刻", 30: "半", 45: "三刻"}.get(minute) or f"{'零' if minute < 10 else ''}{cardinal(minute, 'zh')}分"
    for before, count in ((part, hour % 12 if hour != 12 else 12), ("", hour)):
        yield f"{before}{'两' if count == 2 else cardinal(count, 'zh')}点{spoken}"


def _english_dates(month, day, year):
    ordinal = ORDINALS[day - 1] if day <= 20 else "thirtieth" if day == 30 else f"{cardinal(day // 10 * 10, 'en')} {ORDINALS[day % 10 - 1]}"
    after = ""
    if year:
        century, rest = divmod(year, 100)
        tail = "hundred" if not rest else f"oh {cardinal(rest, 'en')}" if rest < 10 else cardinal(rest, "en")
        after = " " + (cardinal(year, "en") if 2000 <= year < 2010 else f"{cardinal(century, 'en')} {tail}")
    yield f"{MONTHS[month - 1]} {ordinal}{after}"
    yield f"the {ordinal} of {MONTHS[month - 1]}{after}"


def _mandarin_dates(month, day, year):
    before = "".join(cardinal(int(digit), "zh") for digit in str(year)) + "年" if year else ""
    for word in "日号":
        yield f"{before}{cardinal(month, 'zh')}月{cardinal(day, 'zh')}{word}"
