"""The small vocabulary of the course's text models, as a `transformers` CLIP tokenizer.

CLIP's own has 49,408 tokens, more weights than all the rest of a small model. Here every word of the captions is one
token; any other text is spelt byte by byte, so that every prompt can be asked.
"""

from transformers import CLIPTokenizer

from ..world.labels import CLASSES, COLOURS

CONTEXT = 24  # tokens, with the two that begin and end a text
WORDS = [
    *("a", "photo", "of", "the", "this", "is", "one", "two", "three", "object", "objects", "picture"),
    *("small", "large", "matte", "shiny", "on", "in", "before", "front", "left", "middle", "right", "floor", "wall"),
    *COLOURS,
    *CLASSES,
]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def _bytes() -> list[str]:
    """The printable characters that stand for the 256 bytes, in CLIP's order (Radford et al., 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def _merged(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """A word's symbols after byte-pair encoding: always the pair of lowest rank next (Sennrich et al., 2016)."""
    while len(symbols) > 1:
        best = min(zip(symbols, symbols[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        out, i = [], 0
        while i < len(symbols):
            joins = tuple(symbols[i : i + 2]) == best
            out.append("".join(best) if joins else symbols[i])
            i += 2 if joins else 1
        symbols = out
    return symbols


def merges(words: list[str] = WORDS) -> list[tuple[str, str]]:
    """The merges that make one token of each word. A later one has a higher rank, so it breaks no earlier word."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        spelt = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols := _merged(spelt, ranks)) > 1:
            ranks[symbols[0], symbols[1]] = len(ranks)
    return list(ranks)


def tokenizer() -> CLIPTokenizer:
    """The tokenizer: bytes, bytes that end a word, merged symbols, begin, end. The end has the highest index, by which
    both CLIP implementations find it."""
    pairs = merges()
    tokens = [*_bytes(), *(f"{b}</w>" for b in _bytes())]
    tokens += [joined for joined in dict.fromkeys(map("".join, pairs)) if joined not in tokens] + [BEGIN, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=CONTEXT)
