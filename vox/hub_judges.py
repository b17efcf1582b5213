"""Judges that others trained: those of Seed-TTS-eval (paper §4.2), where the Hugging Face hub can be reached, and pocketsphinx.

    WER of English     Whisper large-v3        through `transformers` (the extra "community")
    CER of Mandarin    Paraformer              through `funasr` (pip install funasr)
    SIM                WavLM x-vectors         through `transformers`
    WER of English     pocketsphinx            brings its model along (the extra "metrics"); knows only the words it is told

Notable choices
- they have the face of `vox.judge.Judges`, so `vox.metrics.evaluate` takes them as they are; a pair is for one language, because
  the protocol's recognisers are;
- the protocol's own speaker model, a WavLM-large tuned with UniSpeech, is no `transformers` checkpoint. The default here is the
  published one of the same family, so SIM compares models judged here, and not with figures from papers.
"""

from collections import defaultdict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vox.metrics import METRICS, SAMPLE_RATE, need, units

COMMUNITY = "-e '.[community]' in the repository"  # what pip is to install
LANGUAGES = {"en-us": "english", "cmn": "chinese"}


class Whisper:
    """Whisper as a recogniser of one language. source: a name on the hub, or a folder."""

    def __init__(self, source: str, language: str, device):
        transformers = need("transformers", COMMUNITY)
        self.listen = transformers.WhisperFeatureExtractor.from_pretrained(source)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(source).to(device).eval()
        self.language = language

    def __call__(self, wavs: list[Tensor]) -> list[str]:
        """What recordings [N] at 16 kHz, up to 30 s each, say."""
        heard = self.listen([wav.cpu().numpy() for wav in wavs], sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True)
        heard = heard.to(self.model.device)
        ids = self.model.generate(**heard, language=self.language, task="transcribe")
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class Paraformer:
    """Paraformer as a recogniser of Mandarin. source: a name funasr knows, or a folder."""

    def __init__(self, source: str, device):
        self.model = need("funasr", "funasr").AutoModel(model=source, device=str(device), disable_update=True)

    def __call__(self, wavs: list[Tensor]) -> list[str]:
        """What recordings [N] at 16 kHz say."""
        return [self.model.generate(input=wav.cpu().numpy(), fs=SAMPLE_RATE)[0]["text"] for wav in wavs]


class WavLM:
    """A WavLM that makes x-vectors. source: a name on the hub, or a folder."""

    def __init__(self, source: str, device):
        transformers = need("transformers", COMMUNITY)
        self.listen = transformers.AutoFeatureExtractor.from_pretrained(source)
        self.model = transformers.WavLMForXVector.from_pretrained(source).to(device).eval()

    def __call__(self, wav: Tensor) -> Tensor:
        """The voice of a recording [N] at 16 kHz: a unit vector [E]."""
        heard = self.listen(wav.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model(**heard).embeddings[0], dim=0).cpu()


class Sphinx:
    """pocketsphinx as a recogniser of English that expects words to follow one another as they do in some of `texts`.

    It errs on many true recordings of a synthesiser, so compare it with itself: speech against true recordings of the same texts.
    Raises ValueError for words its dictionary lacks, ModuleNotFoundError without the extra "metrics".
    """

    def __init__(self, texts: list[str]):
        self.decoder = need("pocketsphinx", METRICS).Decoder(lm=None, samprate=SAMPLE_RATE, loglevel="FATAL")
        words = sorted({word for text in texts for word in units(text).split()})
        unknown = [word for word in words if self.decoder.lookup_word(word) is None]
        if unknown:
            raise ValueError(f"pocketsphinx knows no {', '.join(unknown)}: leave out the texts with them")
        self.decoder.add_fsg("texts", self.decoder.create_fsg("texts", 0, 1, transitions(texts)))
        self.decoder.activate_search("texts")

    def __call__(self, wavs: list[Tensor]) -> list[str]:
        """What recordings [N] at 16 kHz say, as far as the grammar allows."""
        heard = []
        for wav in wavs:
            self.decoder.start_utt()
            self.decoder.process_raw((wav.cpu() * 32767).clamp(-32768, 32767).short().numpy().tobytes(), full_utt=True)
            self.decoder.end_utt()
            heard.append(self.decoder.hyp().hypstr if self.decoder.hyp() else "")
        return heard


def transitions(texts: list[str]) -> list[tuple]:
    """What may follow what, as arcs of a finite-state grammar: (from, to, probability, word or nothing).

    State 0 is the start, 1 the end, and each word has the state behind it. What may come next is equally likely.
    """
    follow = defaultdict(set)
    for text in texts:
        for word, after in pairwise(["", *units(text).split(), ""]):  # "" is the start and the end
            follow[word].add(after)
    state = {word: number for number, word in enumerate(sorted(follow.keys() - {""}), 2)}
    arcs = []
    for word, nexts in follow.items():
        start, chance = state.get(word, 0), 1 / len(nexts)
        arcs += [(start, state[after], chance, after) if after else (start, 1, chance) for after in sorted(nexts)]
    return arcs


class HubJudges:
    """A recogniser of one language and a speaker encoder, as `vox.judge.Judges`."""

    def __init__(self, recogniser, encoder):
        self.recogniser, self.encoder = recogniser, encoder

    @torch.inference_mode()
    def transcribe(self, wavs: list[Tensor]) -> list[str]:
        """What recordings [N] at 16 kHz say."""
        return [text for start in range(0, len(wavs), 8) for text in self.recogniser(wavs[start : start + 8])]

    @torch.inference_mode()
    def embed(self, wavs: list[Tensor]) -> Tensor:
        """The voices of recordings [N] at 16 kHz: unit vectors [B, E]."""
        return torch.stack([self.encoder(wav) for wav in wavs])


def load(
    language: str,
    recogniser: str | None = None,
    encoder: str = "microsoft/wavlm-base-plus-sv",
    device: str | torch.device = "cpu",
) -> HubJudges:
    """The community's judges of a language: "en-us" (Whisper large-v3) or "cmn" (Paraformer). They are downloaded when first used.

    recogniser, encoder: other names or folders of the same classes. Raises ValueError for another language,
    ModuleNotFoundError without `transformers` or `funasr`, OSError if the hub cannot be reached.
    """
    if language not in LANGUAGES:
        raise ValueError(f"there are judges for {' and '.join(LANGUAGES)}, not for {language!r}")
    if language == "cmn" and recogniser is None:
        return HubJudges(Paraformer("paraformer-zh", device), WavLM(encoder, device))
    return HubJudges(Whisper(recogniser or "openai/whisper-large-v3", LANGUAGES[language], device), WavLM(encoder, device))
