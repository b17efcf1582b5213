"""TSLM, the text-semantic language model: reads text and past patches, plans what comes next (paper §3.1).

A causal MiniCPM-4 stack with a token table. Text positions enter as token embeddings, audio positions as LocEnc
embeddings; the released model starts from MiniCPM-4-0.5B. Under muP token embeddings are multiplied by scale_emb.
"""

from torch import Tensor, nn

from vox.config import TransformerConfig
from vox.transformer import Transformer


class TSLM(Transformer):
    """Args: config of the stack; vocab, number of text tokens."""

    def __init__(self, config: TransformerConfig, vocab: int):
        super().__init__(config, causal=True)
        self.embed_tokens = nn.Embedding(vocab, config.hidden)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [B, T] → embeddings [B, T, H]"""
        return self.embed_tokens(tokens) * (self.config.scale_emb if self.config.mup else 1.0)
