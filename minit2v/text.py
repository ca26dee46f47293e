"""Text becomes context: a prompt is cut into tokens, and each token becomes a vector.

A diffusion model does not read letters. ModelScope takes the text half of a CLIP model (Radford et al.
2021, arXiv:2103.00020; here OpenCLIP's ViT-H/14) that was trained beforehand to tell which caption
belongs to which picture. It is frozen: the UNet learns to look at its vectors by cross-attention.

    "a red circle"  ─ Tokenizer ─  SOT a red circle EOT 0 0 ...  ─ TextEncoder ─  L vectors of `width` numbers

Two details are easily missed, and the released weights need both. The vectors are read one block before
the end ("penultimate"): the last block condenses the sentence into the one vector that CLIP compares with
pictures, while the block before still says what each word means. And nothing is masked at the padding:
all L positions go to the UNet, padded ones included.

Our mini model goes the same way: `learn_merges` makes a small vocabulary out of captions (Sennrich et al.
2016, arXiv:1508.07909), and `ContrastiveText` trains the tower with open_clip's own blocks and loss.
Source of the original: `FrozenOpenCLIPEmbedder` in modelscope, models/multi_modal/video_synthesis.
"""

import gzip
import math
import unicodedata
import warnings
from collections import Counter
from functools import cached_property
from pathlib import Path

import regex
import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.loss import ClipLoss
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from open_clip.transformer import LayerNorm, TextTransformer, Transformer
from torch import Tensor, nn

from minit2v.config import TextConfig

WEIGHTS = Path(__file__).parent / "weights"
BASE_TOKENS = 512                                         # 256 bytes, and each once more as the end of a word
SPECIAL_TOKENS = 2                                        # start and end of text: the two highest ids
CLIP_TOKENS = 49_408                                      # of CLIP's own vocabulary


class Tokenizer:
    """Cuts text into tokens: byte-pair encoding, with the tokenizer class of open_clip.

    `config.merges` names the vocabulary: None for the 49,408 tokens of CLIP, otherwise a file that
    `write_merges` wrote, looked up in minit2v/weights (an absolute path is taken as it is).
    Raises ValueError when the file is missing or does not hold `config.vocab_size` tokens.
    """

    def __init__(self, config: TextConfig):
        self.config, size = config, CLIP_TOKENS
        if config.merges is not None:
            path = WEIGHTS / config.merges
            if not path.is_file():
                raise ValueError(f"the tokenizer's merges are expected in {path}, but there is no such file; "
                                 f"write it with write_merges, or set merges=None for CLIP's own vocabulary")
            self.bpe = SimpleTokenizer(bpe_path=str(path), context_length=config.context_length)
            size = self.bpe.vocab_size
        if size != config.vocab_size:
            raise ValueError(f"vocab_size is {config.vocab_size}, but the merges make {size} tokens; set "
                             f"vocab_size={size} or learn the merges anew")
        self.sot, self.eot = size - 2, size - 1

    @cached_property
    def bpe(self) -> SimpleTokenizer:
        """CLIP's own vocabulary is read when the first text comes, for it takes a tenth of a second."""
        return SimpleTokenizer(context_length=self.config.context_length)

    def encode(self, text: str) -> list[int]:
        """One text -> its tokens, as many as there are, without start and end."""
        return self.bpe.encode(text)

    def __call__(self, texts: str | list[str]) -> Tensor:
        """N texts -> (N, L) int64: start of text, tokens, end of text, then zeros up to L = context_length.

        A text that is too long loses its end, not its end-of-text token; a warning says what was cut.
        """
        texts = [texts] if isinstance(texts, str) else texts
        room = self.config.context_length - SPECIAL_TOKENS
        tokens = torch.zeros(len(texts), self.config.context_length, dtype=torch.long)        # (N, L)
        for row, text in zip(tokens, texts):
            ids = self.encode(text)
            if len(ids) > room:
                warnings.warn(f"the prompt has {len(ids)} tokens, but only {room} fit; this was cut off: "
                              f"\"{self._text(ids[room:])}\"", stacklevel=2)
            ids = [self.sot, *ids[:room], self.eot]
            row[:len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, ids: Tensor | list[int]) -> str:
        """One row of ids -> the text between start and end of text, as the tokenizer saw it (lower case)."""
        ids = torch.as_tensor(ids).tolist()
        if self.sot in ids:
            ids = ids[ids.index(self.sot) + 1:]
        if self.eot in ids:
            ids = ids[:ids.index(self.eot)]
        return self._text(ids)

    def _text(self, ids: list[int]) -> str:
        return self.bpe.decode(ids).strip(" \ufffd")      # U+FFFD stands for half a Chinese character


class HubTokenizer(Tokenizer):
    """What transformers makes of the tokenizer files on the Hub, for numbers that equal those of diffusers.

    The two tokenizers share vocabulary and merges; most prompts get the same tokens. The files on the Hub differ in
    three ways, the first of them a slip (special_tokens_map.json has "!" as padding, which is token 0):
        a "!" anywhere is the padding token, where open_clip has one of its own for it;
        <|startoftext|> and <|endoftext|> in a prompt are the special tokens, where open_clip spells its own otherwise;
        HTML entities, ligatures and curly quotes stay as they are (no ftfy, no unescaping), accents are composed.
    Equal, token for token, to CLIPTokenizer of transformers 5 (class of the same name, normalizer and pre_tokenizer).
    """

    WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    SPECIAL = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")

    def __init__(self, config: TextConfig):
        super().__init__(config)
        if config.merges is not None:
            raise ValueError(f"the Hub's tokenizer is CLIP's, but this model has a vocabulary of its own "
                             f"({config.merges}); use tokenizer=\"open_clip\"")

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, part in enumerate(text.split("!")):
            ids += [0] if i else []                       # the "!" before this part
            part = unicodedata.normalize("NFC", part)
            lower = "".join(letter.lower() for letter in part)          # letter by letter: no final sigma
            for piece in self.SPECIAL.split(lower):
                if self.SPECIAL.fullmatch(piece):
                    ids.append(self.sot if "start" in piece else self.eot)
                    continue
                for word in self.WORD.findall(piece):
                    letters = "".join(self.bpe.byte_encoder[byte] for byte in word.encode("utf-8"))
                    ids += [self.bpe.encoder[token] for token in self.bpe.bpe(letters).split(" ")]
        return ids


TOKENIZERS = {"open_clip": Tokenizer, "hub": HubTokenizer}


def learn_merges(words: dict[tuple[str, bool], int], vocab_size: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: join the most frequent pair of neighbours into a new token, again and again.

    words: {(piece, final): count}. `final` says that a word ends with this piece; a Chinese caption is one
    unbroken run of characters, so only its last piece is final. Nothing is ever joined across two pieces.
    Returns the pairs in the order learnt; together with the 512 single bytes and the two special tokens
    they make `vocab_size` tokens. Equal counts are decided by alphabet, so the result depends on `words` alone.
    Raises ValueError when `vocab_size` is below 514 or needs more merges than the words hold.
    Source: Sennrich et al. 2016, algorithm 1, on bytes instead of characters, as in CLIP.
    """
    wanted = vocab_size - BASE_TOKENS - SPECIAL_TOKENS
    if wanted < 0:
        raise ValueError(f"vocab_size is {vocab_size}, but {BASE_TOKENS} bytes and {SPECIAL_TOKENS} special tokens are "
                         f"always there; make it at least {BASE_TOKENS + SPECIAL_TOKENS}")
    letters = bytes_to_unicode()                          # byte -> a visible character that stands for it
    corpus: Counter[tuple[str, ...]] = Counter()
    for (piece, final), count in words.items():
        symbols = [letters[byte] for byte in piece.encode("utf-8")]
        if symbols:
            symbols[-1] += "</w>" if final else ""
            corpus[tuple(symbols)] += count

    merges: list[tuple[str, str]] = []
    while len(merges) < wanted:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in corpus.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += count
        if not pairs:
            most = BASE_TOKENS + len(merges) + SPECIAL_TOKENS
            raise ValueError(f"vocab_size is {vocab_size}, but these words hold no more than {len(merges)} merges; "
                             f"make it at most {most} or bring more words")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for symbols, count in corpus.items():
            joined[join_pair(symbols, best)] += count
        corpus = joined
    return merges


def join_pair(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Every occurrence of `pair` becomes one symbol, from the left: (a, a, a) with (a, a) -> (aa, a)."""
    joined, i = [], 0
    while i < len(symbols):
        width = 2 if symbols[i:i + 2] == pair else 1
        joined.append("".join(symbols[i:i + width]))
        i += width
    return tuple(joined)


def write_merges(path: str | Path, merges: list[tuple[str, str]]):
    """Writes merges as open_clip's tokenizer reads them: gzip, a header line, one pair a line, no last newline."""
    lines = ["#version: 0.2, learnt from the captions of Moving Shapes", *(f"{a} {b}" for a, b in merges)]
    Path(path).write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))


class TextEncoder(nn.Module):
    """CLIP's text tower up to the last block but one: 340,387,840 parameters at the released size.

    The blocks are open_clip's and so are all names: a state dict holds, key for key, the first
    `config.layers - 1` blocks of open_clip's `TextTransformer`, and no buffer.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.layers - 1, config.heads)
        self.ln_final = LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) -> context (N, L, width), one vector a token, L at most `context_length`."""
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context_length:
            raise ValueError(f"tokens have the shape {tuple(tokens.shape)}, but must be (texts, length) with a length "
                             f"of at most {self.config.context_length}; make them with this config's Tokenizer")
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]                 # (N, L, width)
        # A causal mask: a token sees itself and what stands before it, so -inf above the diagonal.
        mask = x.new_full((length, length), -math.inf).triu(1)                                # (L, L)
        return self.ln_final(self.transformer(x, attn_mask=mask))


class VideoTower(nn.Module):
    """A small convolutional net that turns a clip's latents into one vector: what a caption is compared with.

    First it looks at each frame alone, where shapes are; then the frames are stacked as channels, and every weight
    belongs to one frame, so the net can tell left from right, and growing from shrinking. It is needed only to
    train the text tower, and thrown away afterwards.
    """

    def __init__(self, width: int, num_frames: int = 16, channels: int = 4):
        super().__init__()
        self.num_frames, self.channels = num_frames, channels
        self.frame = nn.Sequential(
            nn.Conv2d(channels, 48, 3, padding=1), nn.GELU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.GroupNorm(6, 48), nn.GELU(),
        )
        self.clip = nn.Sequential(
            nn.Conv2d(48 * num_frames, 192, 1), nn.GroupNorm(8, 192), nn.GELU(),
            nn.Conv2d(192, 192, 3, stride=2, padding=1), nn.GroupNorm(8, 192), nn.GELU(),               # 4 x 4
            nn.Conv2d(192, 256, 3, padding=1), nn.GELU(),
        )
        self.out = nn.Linear(256, width)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, 4, F, h, w), 8 x 8 in the mini model, -> (N, width)."""
        if latents.ndim != 5 or latents.shape[1:3] != (self.channels, self.num_frames):
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, but must be (clips, {self.channels}, "
                             f"{self.num_frames}, height, width); encode clips of {self.num_frames} frames")
        x = self.frame(rearrange(latents, "n c f h w -> (n f) c h w"))                        # (N F, 48, h, w)
        x = self.clip(rearrange(x, "(n f) c h w -> n (f c) h w", f=self.num_frames))          # (N, 256, h/2, w/2)
        return self.out(x.mean(dim=(2, 3)))                                                   # (N, width)


class ContrastiveText(nn.Module):
    """Trains a text tower as CLIP was trained, with clips in the place of pictures.

    In a batch of N clips and their N captions each caption must find its own clip among all N, and each
    clip its caption: two classifications with N classes (InfoNCE; Radford et al. 2021, figure 3). To win,
    the tower has to tell apart whatever captions say: colours, shapes, and motions above all.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        # Pooling "argmax" takes the vector at the highest id of a row. That is the end of text, here as in CLIP.
        self.text = TextTransformer(config.context_length, config.vocab_size, config.width, config.heads,
                                    config.layers, output_dim=config.width, pool_type="argmax")
        self.video = VideoTower(config.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))                     # as in CLIP
        self.info_nce = ClipLoss()

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) -> vectors of length one (N, width)."""
        return F.normalize(self.text(tokens), dim=-1)

    def embed_video(self, latents: Tensor) -> Tensor:
        """Latents of clips (N, 4, 16, h, w) -> vectors of length one (N, width)."""
        return F.normalize(self.video(latents), dim=-1)

    def loss(self, tokens: Tensor, latents: Tensor) -> tuple[Tensor, dict]:
        """Row i of `tokens` describes row i of `latents` -> (loss, parts); log N is chance, 0 is perfect.

        `parts` holds `accuracy`, the share of captions that find their clip in the batch, and `scale`.
        """
        text, video = self.embed_text(tokens), self.embed_video(latents)                      # (N, width) each
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()                             # CLIP's upper limit
        loss = self.info_nce(video, text, scale)
        right = (text @ video.T).argmax(dim=1) == torch.arange(len(text), device=text.device)
        return loss, {"accuracy": right.float().mean(), "scale": scale.detach()}

    def text_encoder(self) -> TextEncoder:
        """The part that generation needs: a copy of the tower without its last block and its projection."""
        encoder = TextEncoder(self.config).to(self.text.positional_embedding)
        trained = self.text.state_dict()
        encoder.load_state_dict({name: trained[name] for name in encoder.state_dict()})
        return encoder
