"""Text in, token ids out (paper §3.1: byte-pair tokens, Chinese tokens split into characters).

Notable choices
- numbers are spoken before they are tokenized, so a text holds only what is heard.
"""

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "零一二三四五六七八九"


def cardinal(n: int, language: str) -> str:
    """A whole number from 0 to 9999 in words.

    English ("en") is British: "four hundred and twelve", "one thousand and five". Mandarin ("zh") is the spoken
    standard: 十二 and not 一十二 at the start, one 零 for any run of skipped places (一千零五), 两千 before a thousand
    and 二百 before a hundred. Raises ValueError for another number or language.
    """
    if not 0 <= n <= 9999:
        raise ValueError(f"cardinal reads whole numbers from 0 to 9999, not {n}")
    if language not in ("en", "zh"):
        raise ValueError(f"cardinal speaks 'en' and 'zh', not {language!r}")
    return _english(n) if language == "en" else _mandarin(n)


def _english(n):
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    size, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    head, rest = f"{ONES[n // size]} {name}", n % size
    if not rest:
        return head
    return f"{head} and {_english(rest)}" if rest < 100 else f"{head} {_english(rest)}"


def _mandarin(n):
    if n < 10:
        return DIGITS[n]
    text, gap = "", False
    for size, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // size % 10
        if not digit:
            gap = bool(text)  # a skipped place is spoken once, and only if something follows
            continue
        text += ("零" if gap else "") + ("两" if digit == 2 and size == 1000 else DIGITS[digit]) + unit
        gap = False
    return text[1:] if text.startswith("一十") else text
