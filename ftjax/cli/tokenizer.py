"""ftjax tokenizer train --kind=byte_bpe --input=FILE[,FILE...] --vocab_size=N --output=DIR: learns a tokenizer.

kind: bpe (words in characters, with a mark at their ends), byte_bpe (GPT-2's), wordpiece (BERT's), unigram (T5's).
input: .txt or .txt.gz. `AutoTokenizer.from_pretrained` of transformers loads the output; the same input gives the same.
"""

from typing import Any

from absl import flags

from ftjax.errors import UserError
from ftjax.files import local, whole

POSITIONAL = 1  # train


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("kind", None, "bpe, byte_bpe, wordpiece or unigram", flag_values=values)
    flags.DEFINE_multi_string("input", [], "text files, joined by commas; repeatable", flag_values=values)
    flags.DEFINE_string("output", None, "the folder to write", flag_values=values)
    flags.DEFINE_integer("vocab_size", None, "ids at most, special tokens included", flag_values=values)
    flags.DEFINE_bool("lowercase", False, "lower-case all text; of wordpiece, without accents", flag_values=values)
    flags.DEFINE_multi_string("special", [], "a further special token; repeatable", flag_values=values)
    flags.DEFINE_integer("sentinels", 0, "of unigram: tokens <extra_id_0>, ...", lower_bound=0, flag_values=values)


def main(values: flags.FlagValues, what: str = "") -> None:
    """Learns, writes the folder, and prints the size and how long the input is in tokens."""
    if what != "train":
        raise UserError(f"ftjax tokenizer {what}: give ftjax tokenizer train --kind=..., or --help")
    get: Any = lambda name: values[name].value  # noqa: E731
    files = [name for names in get("input") for name in names.split(",") if name]
    if not (files and get("kind") and get("output") and get("vocab_size") is not None):
        raise UserError("give --kind=KIND, --input=FILE (one or more), --vocab_size=N and --output=DIR")
    from ftjax.data.tokenizer import measure, train_tokenizer

    folder = local(get("output"), "--output")
    options = {name: get(name) for name in ("lowercase", "special", "sentinels")}
    tokenizer = train_tokenizer(get("kind"), files, get("vocab_size"), **options)
    with whole(folder) as aside:
        tokenizer.save_pretrained(aside)
    size = measure(tokenizer, files)
    print(
        f"{folder}: {len(tokenizer):,} ids; {size.tokens / size.words:.3f} tokens a word and "
        f"{size.bytes / size.tokens:.3f} bytes a token over {size.words:,} words of the input"
    )
