"""Text in, token ids out (paper §3.1: byte-pair tokens, with tokens of several Chinese characters split into single ones).

Two tokenizers with one face (`encode`, `decode`, `vocab_size`, `save`): `CharTokenizer` is embedded here and has one id per
character of English and common Mandarin, and more for the words of a corpus if it may learn them; `BPETokenizer` reads the
released `tokenizer.json`.

Notable choices
- ids 0, 1, 2, 3 are padding, begin, end and unknown; 101 to 104 are the released ids of the audio marks, in both tokenizers;
- `CharTokenizer` hears, it does not read: digits are spoken before they are tokenized, capitals and full-width forms fold
  into one spelling, and a character it does not know is an error and never a silent gap;
- pairs are merged inside English words only, so that a word of the corpus is one token and not its spelling; Chinese
  characters stay single, as in the released model;
- `BPETokenizer` changes nothing but white space, because the released model was trained on texts as written.
"""

import itertools
import json
import re
import shutil
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from vox.files import read_json, replacing, write_json

AUDIO_START, AUDIO_END = 101, 102
SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", AUDIO_START: "<|audio_start|>", AUDIO_END: "<|audio_end|>"}
SPECIAL |= {103: "<|ref_audio_start|>", 104: "<|ref_audio_end|>"}  # used by VoxCPM 2, reserved here
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")

PUNCTUATION = str.maketrans("。、‘’–—", ".,''--") | str.maketrans(dict.fromkeys("“”「」『』《》", '"'))  # what NFKC leaves
# One id each, in this order: a saved model depends on it, so new characters may only be added at the end.
CHARACTERS = (
    " abcdefghijklmnopqrstuvwxyz.,?!;:'\"-()"
    # numbers, times and dates, then common characters
    "零〇一二两三四五六七八九十百千万亿点分秒半刻钟时上下早中午晚凌晨夜今明昨后前年月日号星期周天第差过整到负个元块岁度"
    "的是不了在人有我他这们来大为和国地以说要就出会可也你对生能而子那得于着自之发作里用道行所然家种事成方多经么去法学如都同现当没动面"
    "起看定还进好小部其些主样理心她本开但因只从想实军者意无力它与长把机民公此已工使情性知全又关正业外将高间由问很最重并物手应战向头文"
    "体政美相见被利什等产或新己制身果加西斯话合回特代内信表化老给世位次门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平"
    "系气题活尔更别打女变神总何电数安少报才结反受目太量再感建务做接必场件计管市直德资命山金指克许统区保至队形社便空决治展马科司基眼书"
    "非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规取拉格望觉术领共确传师观清切院让识候带导争运笔组影"
    "青收热离帮爱快乐谢请您吗呢吧啊哪谁怎喜欢吃喝茶饭红黄蓝绿黑春夏秋冬雨雪风云花树鸟鱼狗猫车站飞票钱买卖店房屋校朋友父母爸妈哥姐弟妹"
    "孩男京城省村河江湖音歌唱读写字语言英汉词句课考试忙"
)

# What a vocabulary of 4096 has room for as well: all of level 1 of GB 2312, the 3755 characters that figures can draw.
_LEVEL_1 = bytes(byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF if row < 0xD7 else 0xFA) for byte in (row, cell))
MORE_CHARACTERS = CHARACTERS + "".join(character for character in _LEVEL_1.decode("gb2312") if character not in CHARACTERS)

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "零一二三四五六七八九"


class UnknownCharacter(ValueError):
    """A text holds characters that the tokenizer has no id for; `characters` lists them."""

    def __init__(self, characters: str, text: str):
        self.characters = characters
        names = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters)
        super().__init__(f"no token for {names} in {_short(text)}: write it with the letters a-z, common Chinese characters and . , ? !")


def normalise(text: str) -> str:
    """A text as it is spoken: one spelling per character (Unicode NFKC, plain punctuation), single spaces, numbers in words.

    "第１２号，  room 412" → "第十二号, room four hundred and twelve". A number is spoken in the language of the nearest letter,
    English if there is none; a Chinese year (2024年) digit by digit. Capitals stay. Doing it twice changes nothing.
    Raises ValueError for an empty text, and for a number that is not a whole one from 0 to 9999 standing on its own ("3.5",
    "12:30", "mp3", "007", "-5"), because its reading would be a guess. A hyphen after a letter or digit is no sign ("covid-19").
    """
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, not {type(text).__name__}")
    text = unicodedata.normalize("NFKC", text).translate(PUNCTUATION)
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # zero-width marks of web pages
    text = " ".join(text.split())
    if not text:
        raise ValueError("the text is empty: give at least one word")
    text = re.sub(r"[0-9]{4}(?=年)", lambda year: "".join(DIGITS[int(digit)] for digit in year[0]), text)
    return re.sub(r"(?:(?<![\w-])-)?[A-Za-z]*[0-9]+(?:[.,:/][0-9]+)*[A-Za-z]*", _spoken, text)


def _spoken(match):
    number = match[0].replace(",", "") if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", match[0]) else match[0]
    if not re.fullmatch(r"0|[1-9][0-9]{0,3}", number):
        raise ValueError(f"cannot speak {match[0]!r} in {_short(match.string)}: write it in words, or as whole numbers from 0 to 9999")
    sides = (reversed(match.string[: match.start()]), match.string[match.end() :])
    near = [next(((far, letter) for far, letter in enumerate(side) if letter.isalpha()), (len(match.string), "a")) for side in sides]
    return cardinal(int(number), "zh" if is_chinese(min(near)[1]) else "en")


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


def is_chinese(character: str) -> bool:
    """Whether one character is a Chinese one, or Chinese (full-width) punctuation."""
    return any(low <= character <= high for low, high in (("\u3000", "\u303f"), ("\u3400", "\u9fff"), ("\uff00", "\uffef")))


def join_texts(prompt_text: str, text: str) -> str:
    """The prompt's text and the target text as two sentences: a full stop after the first if it ends in a word, and a space in English.

    The released code puts nothing between them, which makes "nineten" of nine and ten, and 九十, ninety, of 九 and 十. A mark that is there
    is left alone: give a prompt that breaks off within a sentence a comma.
    """
    prompt_text = prompt_text.rstrip()
    if not prompt_text or not text:
        return prompt_text + text
    chinese = is_chinese(prompt_text[-1])
    if prompt_text[-1].isalnum():
        prompt_text += "。" if chinese else "."
    return prompt_text + ("" if chinese or text[0].isspace() or is_chinese(text[0]) else " ") + text


SENTENCE_END = re.compile(r"(?<=[。！？；…\n])|(?<=[.!?;])(?=\s)|(?<=[.!?;][\"')”’])(?=\s)")
CLAUSE_END = re.compile(r"(?<=[，、：,:])(?!(?<=\d[，：,:])\d)")  # "3,000" is one number


def speaking_seconds(text: str) -> float:
    """About how long a text takes to say: 17 letters or 4 Chinese characters a second, measured on the default corpus."""
    chinese = sum(map(is_chinese, text))
    return chinese / 4 + (len(text) - chinese) / 17


def split_text(text: str, seconds: float) -> list[str]:
    """A text in pieces that take up to about `seconds` to say: as many whole sentences as fit; a longer sentence is cut at its commas.

    Nothing is lost but white space between pieces. A text that is short enough comes back as it is.
    """
    if speaking_seconds(text) <= seconds:
        return [text]
    parts = []
    for sentence in SENTENCE_END.split(text):
        parts += [sentence] if speaking_seconds(sentence) <= seconds else CLAUSE_END.split(sentence)
    pieces = [""]
    for part in parts:
        if pieces[-1].strip() and speaking_seconds(pieces[-1] + part) > seconds:
            pieces.append("")
        pieces[-1] += part
    return [piece.strip() for piece in pieces if re.search(r"\w", piece)] or [text]  # marks alone are nothing to say


def known_characters(vocab: int) -> str:
    """The characters that get an id each in a vocabulary of this size."""
    return MORE_CHARACTERS if vocab >= 4096 else CHARACTERS


class CharTokenizer:
    """One id per character, of `CHARACTERS` by default: no file needed, 512 ids. With `MORE_CHARACTERS` they are 3802, the first the same.

    merges: pairs of tokens that become one, in the order they are looked for (byte-pair encoding); `learn` finds those of a corpus.
    Their ids follow those of the characters. `save` writes a folder that `transformers.LlamaTokenizerFast` loads with the same
    ids for normalised lower-case text.
    """

    def __init__(self, characters: str = CHARACTERS, merges=()):
        tokens = dict.fromkeys((*characters, *(first + second for first, second in merges)))
        self.ids = dict(zip(tokens, (i for i in itertools.count() if i not in SPECIAL), strict=False))
        self.tokens = {i: token for token, i in self.ids.items()}
        self.vocab_size = len(self.ids) + len(SPECIAL)
        self.settings = {"characters": characters, "merges": [list(pair) for pair in merges]}
        marked = {token.replace(" ", "▁"): i for token, i in self.ids.items()}
        vocabulary = marked | {token: i for i, token in SPECIAL.items()}
        self.tokenizer = Tokenizer(models.BPE(vocabulary, merges=[tuple(pair) for pair in merges], unk_token="<unk>"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        self.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL.values()])

    @classmethod
    def learn(cls, texts, vocab: int) -> "CharTokenizer":
        """The tokenizer of a corpus: the characters that `vocab` ids have room for, and the merges of its English words that fit then.

        Raises ValueError if not even the characters fit.
        """
        characters = known_characters(vocab)
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z']+"), "removed")
        alphabet = sorted("abcdefghijklmnopqrstuvwxyz'")
        room = vocab - len(characters) - len(SPECIAL)
        if room < 0:
            raise ValueError(f"the characters and marks take {vocab - room} ids and vocab is {vocab}: set it to {vocab - room} or more")
        trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + room, initial_alphabet=alphabet, show_progress=False)
        learner.train_from_iterator((normalise(text).lower() for text in texts), trainer)
        return cls(characters, json.loads(learner.to_str())["model"]["merges"])

    def encode(self, text: str) -> list[int]:
        """The ids of a text, after `normalise` and lower-casing. Raises UnknownCharacter, and ValueError as `normalise` does."""
        spoken = normalise(text).lower()
        unknown = "".join(dict.fromkeys(character for character in spoken if character not in self.ids))
        if unknown:
            raise UnknownCharacter(unknown, text)
        return self.tokenizer.encode(spoken, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of ids; padding and the other special ids are left out. Raises ValueError for an id out of range."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is not in this tokenizer's 0..{self.vocab_size - 1}")
        return "".join(self.tokens.get(i, "") for i in ids)

    def save(self, folder):
        """Write `tokenizer.json` and `tokenizer_config.json` into a folder, made if missing."""
        config = {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False, "legacy": False} | self.settings
        config |= {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False}
        with replacing(Path(folder) / "tokenizer.json") as aside:
            self.tokenizer.save(str(aside))
        write_json(Path(folder) / "tokenizer_config.json", config)


class BPETokenizer:
    """The released tokenizer: byte-pair tokens as in `tokenizer.json`, those of several Chinese characters split into characters."""

    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing: a released model's folder holds it beside config.json")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocab_size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.words = {token for token in vocabulary if len(token) >= 2 and all("\u4e00" <= character <= "\u9fff" for character in token)}
        self.unknown = vocabulary.get(_settings(self.folder).get("unk_token", "<unk>"))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without begin or end marks; runs of white space count as one space. ValueError for an empty text."""
        text = " ".join(text.split())
        if not text:
            raise ValueError("the text is empty: give at least one word")
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids = []
        for token, i in zip(encoding.tokens, encoding.ids, strict=True):
            word = token.replace("▁", "")
            ids += [self._id(character) for character in word] if word in self.words else [i]
        return ids

    def _id(self, character):
        i = self.tokenizer.token_to_id(character)
        return self.unknown if i is None else i

    def decode(self, ids) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder):
        """Copy the tokenizer's files into a folder, made if missing."""
        for name in FILES:
            if (self.folder / name).is_file():
                with replacing(Path(folder) / name) as aside:
                    shutil.copyfile(self.folder / name, aside)


def load_tokenizer(folder) -> CharTokenizer | BPETokenizer:
    """The tokenizer that stands in a model's folder. Raises ValueError naming the file that is missing or broken."""
    settings = _settings(Path(folder))
    return CharTokenizer(settings["characters"], settings.get("merges", ())) if "characters" in settings else BPETokenizer(folder)


def _settings(folder):
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def _short(text):
    return repr(text if len(text) <= 60 else text[:60] + "…")
