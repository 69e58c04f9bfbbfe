"""Words of English text as the captioning scripts see them: the Penn Treebank's tokens without punctuation.

The scripts run a Java tokenizer (of Stanford CoreNLP 3.4.1, lower-casing). This one gives the same words for the E2E
challenge's texts, and nearly so for others; each text is by itself here, while the Java one may look at the next line.
"""

import functools
import re

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "---", "----", ";", '"'])
_CHARACTERS = str.maketrans({
    "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "--", "—": "--", "…": "...", "£": "#", "€": "$",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "\u00a0": " ",
})  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TOKEN = re.compile(
    r"""
    </?[A-Za-z][A-Za-z0-9:-]*/?>
    # addresses
  | (?:https?://|www\.)[^\s<>"()]*[^\s<>"().,;:!?']
  | [A-Za-z0-9][\w.+%-]*@\w[\w.-]*\w
  | [A-Za-z][\w-]*(?:\.[\w-]+)*\.(?:com|net|org|edu|gov)\b
  | [@\#][A-Za-z]\w*
    # apostrophes, and words that are two
  | [cC]'mon\b | 'n'?(?!\w) | '\d0s\b | '(?:em|cause|till?)\b | [oO]'clock\b | [mM]a'am\b | [oO]'er\b | [en]e'er\b
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b) | '[tT](?=is\b|was\b)
  | '(?:s|m|d|re|ve|ll)(?!\w) | n't(?!\w)
    # abbreviations keep their period
  | (?:[A-Za-z]\.){2,}(?![^\W_])(?!-\w)
  | (?:Mr|Mrs|Ms|Messrs|Dr|Drs|Prof|St|Sgt|Gen|Reps?|Sens?|Gov|Lt|Col|Capt|Cmdr|Brig|Pfc|Adm|Maj|Rev|Hon|Atty|Jr|Sr|Bros
    |Inc|Cos?|Corp|Ltd|Plc|plc|Dept|Univ|Assoc|Ave|Blvd|Rd|Ft|v|etc|vs|al|Ph\.D|e\.g|i\.e
    |Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thurs?|Fri
    |Ala|Ariz|Ark|Calif|Colo|Conn|Del|Fla|Ga|Ill|Ind|Kans?|Ky|La|Mass|Md|Mich|Minn|Miss|Mo|Mont|Neb|Nev|Okla|Ore|Pa|Penn
    |Tenn|Tex|Va|Vt|Wash|Wis|Wyo)\.(?![^\W\d_])
  | [Nn]o\.(?=\s*\d)
  | [A-Za-z]\.(?=\s+\S)(?!\s+(?:A|An|The|It|He|She|They|We|You|I|In|On|At|For|This|That|These|Those|There|Then|But|And
    |If|When|As)\b)
  | [^\W_]+\.(?=[,;:])
    # words with an apostrophe, a slash, a hyphen, a number within
  | [dDoOlL]'[^\W\d_]{2,}(?:-\w+)*
  | [^\W\d_]*[aeiou]'[aeiou][^\W\d_]+
  | \d{1,4}(?:-\d{1,4})?/\d{1,4}(?:/\d{2,4})?
  | [A-Za-z0-9][A-Za-z0-9.,]*(?:-[^\W_]+)+(?:/[^\W_]+(?:-[^\W_]+)*)*
  | [^\W_]+(?:/[^\W_]+(?:-[^\W_]+)?){1,2}(?!\w)
  | [+-]?\d*(?:[.,:]\d+)+
  | (?<!\w)[+-]\d+(?![\w-])
  | [^\W\d_]+?(?=n't(?!\w))
  | [A-Z]+(?:[+&][A-Z]+)+ | [A-Z]{1,3}\$ | C\# | C\+\+
  | [^\W\d_][^\W_]*(?:[-_][^\W_]+)*(?:[.!?][^\W\d_][^\W_]*)*
  | [^\W_]+(?:[-_][^\W_]+)*
    # the rest
  | -+ | \.+ | [?!]+ | ([*_\#<>])\1* | \S
    """,
    re.VERBOSE,
)


@functools.lru_cache(65536)
def ptb_words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case: "It's 20-25 (cheap)." gives it, 's, 20-25, -lrb-, cheap, -rrb-."""
    tokens = (match[0] for match in _TOKEN.finditer(text.translate(_CHARACTERS).replace("&amp;", "&")))
    return tuple(_BRACKETS.get(t, t).lower() for t in tokens if t not in _DROPPED and t.strip("."))
