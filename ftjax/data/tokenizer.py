"""Tokenizers learned from text by the `tokenizers` library: plain and byte-level BPE, WordPiece, unigram."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ftjax.data.sources import read_text, suffix
from ftjax.errors import UserError

MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # ends a word in bpe, begins one in unigram
END = "<|endoftext|>"
SPECIAL: dict[str, dict[str, str]] = {  # the special tokens of a kind, in the order of their ids
    "bpe": {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "byte_bpe": {"bos_token": END, "eos_token": END, "pad_token": END},
    "wordpiece": {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
PIECE = 2**20  # characters that the library is given at once
STEP = 1e-4  # between the scores that the library makes up for characters


class Size(NamedTuple):
    """A text in bytes of UTF-8, in words (what is between spaces) and in tokens, no special ones among them."""

    bytes: int
    words: int
    tokens: int


def train_tokenizer(
    kind: str,
    files: Sequence[str | Path],
    vocab_size: int,
    *,
    lowercase: bool = False,
    special: Sequence[str] = (),
    sentinels: int = 0,
) -> Any:
    """Learns a tokenizer; the same files give the same one.

    bpe: Sennrich et al. 2016, on characters. A word is what is between spaces, and its end is a symbol of its own
        (here U+2581), so that `er` at a word's end and inside differ. Of pairs that are equally frequent the library
        merges the one of the lower ids: characters are numbered as they appear in the words, the most frequent word
        first, which gives the usual textbook example its usual merges.
    byte_bpe: Radford et al. 2019, on bytes with GPT-2's splitting of text; no text is unknown to it.
    wordpiece: Devlin et al. 2018, with BERT's splitting of text, and [CLS] and [SEP] around it. The library learns
        the pieces as BPE merges.
    unigram: Kudo 2018, as T5 uses it: NFKC, runs of white space as one space, and </s> after a text.

    Args:
        kind: bpe, byte_bpe, wordpiece or unigram.
        files: .txt or .txt.gz, UTF-8.
        vocab_size: ids at most, special tokens included; a small text gives fewer.
        lowercase: lower-case all text first; wordpiece then drops accents as well, as BERT does.
        special: further special tokens; they have the last ids.
        sentinels: of unigram: so many tokens <extra_id_0>, <extra_id_1>, ... behind them, T5's, from the last id down.

    Returns:
        transformers' fast tokenizer, whose `save_pretrained` writes a directory for `AutoTokenizer`.

    Raises:
        UserError: an unknown kind, a file that is no text or without words, a special token that is empty or there
            twice, sentinels of another kind, or a vocab_size without room for the alphabet.
    """
    from transformers import PreTrainedTokenizerFast

    if kind not in SPECIAL:
        raise UserError(f"kind={kind!r}: choose one of {', '.join(SPECIAL)}")
    if sentinels and kind != "unigram":
        raise UserError(f"sentinels={sentinels} are for unigram, not for {kind}")
    own = list(dict.fromkeys(SPECIAL[kind].values()))
    added = [*special, *(f"<extra_id_{i}>" for i in reversed(range(sentinels)))]
    if wrong := [token for token in added if not token.strip() or [*own, *added].count(token) > 1]:
        raise UserError(f"special={wrong[0]!r}: give each once, no empty one, and none of {kind}'s {', '.join(own)}")
    texts = [read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise UserError(f"{', '.join(map(str, files)) or 'no file'}: no words to learn from")
    learn = _learn_unigram if kind == "unigram" else _learn_merges
    tokenizer = learn(kind, lowercase, texts, vocab_size - len(added), own)
    tokenizer.add_special_tokens(added)
    seen = ["input_ids", *(["token_type_ids"] if kind == "wordpiece" else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=seen, additional_special_tokens=added, **SPECIAL[kind]
    )


def read(file: str | Path) -> str:
    """The text of a .txt or .txt.gz; UserError for another format, and as `read_text`."""
    if suffix(file) != ".txt":
        raise UserError(f"{file}: a tokenizer learns from text; give .txt or .txt.gz")
    return read_text(file)


def measure(tokenizer: Any, files: Sequence[str | Path]) -> Size:
    """How large the files are, and in how many tokens."""
    sizes = [0, 0, 0]
    for text in map(read, files):
        for piece in _pieces(text):
            encoded = tokenizer.backend_tokenizer.encode_batch_fast(piece.splitlines(True), add_special_tokens=False)
            sizes[2] += sum(map(len, encoded))
        sizes[0] += len(text.encode())
        sizes[1] += len(text.split())
    return Size(*sizes)


def _pieces(text: str) -> Iterator[str]:
    """The text, cut at ends of lines."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _blank(kind: str, lowercase: bool) -> Tokenizer:
    """A tokenizer that has learned nothing yet."""
    lower = [normalizers.Lowercase()] if lowercase else []
    match kind:
        case "bpe":
            tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[kind]["unk_token"]))
            ends = normalizers.Replace(Regex(r"(?<=\S)(\s+|\z)"), MARK)
            tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), *lower, ends])
            tokenizer.pre_tokenizer = pre_tokenizers.Split(MARK, "merged_with_previous")
            tokenizer.decoder = decoders.BPEDecoder(MARK)
        case "byte_bpe":
            tokenizer = Tokenizer(models.BPE())
            if lower:
                tokenizer.normalizer = lower[0]
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        case "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL[kind]["unk_token"]))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
            ids = {token: i for i, token in enumerate(SPECIAL[kind].values())}
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        case _:
            tokenizer = Tokenizer(models.Unigram())
            spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower, *spaces])
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            eos = SPECIAL[kind]["eos_token"]
            tokenizer.post_processor = processors.TemplateProcessing(
                f"$A {eos}", f"$A {eos} $B {eos}", [(eos, list(SPECIAL[kind].values()).index(eos))]
            )
    return tokenizer


def _learn_merges(kind: str, lowercase: bool, texts: Sequence[str], size: int, own: list[str]) -> Tokenizer:
    """The library numbers some alphabets in a random order, and its ties go by these numbers: so the alphabet is given
    to it as special tokens, in ours."""
    alphabet = _alphabet(kind, lowercase, texts, own)
    _need(kind, len(own) + len(alphabet), size)
    tokenizer = _blank(kind, lowercase)
    _train(tokenizer, kind, texts, size, [*own, *alphabet])
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in own]
    return Tokenizer.from_str(json.dumps(state))


def _train(tokenizer: Tokenizer, kind: str, texts: Sequence[str], size: int, special: list[str]) -> None:
    trainer = trainers.WordPieceTrainer if kind == "wordpiece" else trainers.BpeTrainer
    pieces = (piece for text in texts for piece in _pieces(text))
    tokenizer.train_from_iterator(pieces, trainer(vocab_size=size, special_tokens=special, show_progress=False))


def _alphabet(kind: str, lowercase: bool, texts: Sequence[str], own: list[str]) -> list[str]:
    if kind == "byte_bpe":
        return sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "wordpiece":
        tokenizer = _blank(kind, lowercase)
        _train(tokenizer, kind, texts, 0, own)  # makes no merge
        return sorted(tokenizer.get_vocab().keys() - set(own), key=lambda piece: (len(piece), piece))
    lower = normalizers.Lowercase().normalize_str if lowercase else str
    words = Counter(word for text in texts for word in lower(text).split())
    return list(dict.fromkeys(c for word, _ in words.most_common() for c in word + MARK))


def _learn_unigram(kind: str, lowercase: bool, texts: Sequence[str], size: int, own: list[str]) -> Tokenizer:
    """The library sums in a random order, and gives characters that are left without weight falling scores in another:
    so scores are rounded, and those characters share the lowest."""
    tokenizer = _blank(kind, lowercase)
    normalize: Any = tokenizer.normalizer
    alphabet = {c for text in texts for c in set(normalize.normalize_str(text))} - {" "} | {MARK}
    _need(kind, len(own) + len(alphabet) + 1, size)  # with not one piece of two characters it would not stop
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=own, unk_token=SPECIAL[kind]["unk_token"], show_progress=False
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    state = json.loads(tokenizer.to_str())
    learned = state["model"]["vocab"][len(own) :]
    lowest = min(score for _, score in learned)
    rare = lowest + STEP * sum(len(piece) == 1 for piece, _ in learned)
    scores = {piece: round(lowest if len(piece) == 1 and score < rare else score, 6) for piece, score in learned}
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    state["model"]["vocab"] = [*state["model"]["vocab"][: len(own)], *map(list, ordered)]
    return Tokenizer.from_str(json.dumps(state))


def _need(kind: str, least: int, size: int) -> None:
    if size < least:
        raise UserError(
            f"vocab_size leaves {size} ids, and {kind} needs {least} for its special tokens and the alphabet of these "
            f"files; give {least - size} more"
        )
