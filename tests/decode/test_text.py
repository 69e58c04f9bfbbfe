"""Stop strings and streams: the text is the one that is cut afterwards."""

import pytest

from ftjax.decode.generate import continuations, pieces, request
from ftjax.decode.loop import advance, start
from ftjax.decode.stream import stream
from ftjax.decode.text import Stops
from ftjax.errors import UserError
from tests.decode.conftest import NEW, PAD

OPTIONS = dict(max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=39, do_sample=True, temperature=3.0, seed=5)


def spell(tokens):
    """Tokens of one to three letters."""
    return "".join("abcde"[t % 5] * (1 + t % 3) for t in tokens)


def test_where_a_string_ends_a_text():
    stops = Stops(["bb", "ca"], "".join)
    assert stops.length(list("abcabb")) == 4 and stops.length(list("abc")) is None
    assert stops.length(["a", "xbby", "z"]) == 2 and stops.length(list("abcabb"), known=2) == 4
    assert stops.text(list("abcabb")) == "ab" and stops.text(list("abd")) == "abd"
    assert stops.settled(list("adb")) == "ad" and stops.settled(list("adbc")) == "adb"
    assert Stops([], "".join).settled(["ab\ufffd"]) == "ab"
    with pytest.raises(UserError, match="empty"):
        Stops([""], "".join)


@pytest.mark.parametrize("twins", ["gpt2"], indirect=True)
def test_stop_strings_end_a_row(twins, prompts, monkeypatch):
    _, model, params = twins
    monkeypatch.setattr("ftjax.decode.generate.BETWEEN_LOOKS", 3)
    free = continuations(model, params, *prompts, **OPTIONS)
    string = spell(free.tokens[0, 0, 2:4].tolist())
    stops = Stops([string], spell)
    found = continuations(model, params, *prompts, stops=stops, **OPTIONS)
    shorter = 0
    rows = (free.tokens[:, 0], free.lengths[:, 0], found.tokens[:, 0], found.lengths[:, 0])
    for before, long, after, length in zip(*rows):
        whole = before[:long].tolist()
        expected = next((n for n in range(1, long + 1) if string in spell(whole[:n])), long)
        assert length == expected and after[:length].tolist() == whole[:length] and (after[length:] == PAD).all()
        assert stops.text(after[:length].tolist()) == spell(whole).split(string)[0]
        shorter += length < long
    assert shorter
    alone = request(model, params, prompts[0][:1], stops=stops, **OPTIONS)
    assert len(list(pieces(alone, 1))) == found.lengths[0, 0] < NEW  # no step more
    with pytest.raises(UserError, match="stop ids"):
        continuations(model, params, *prompts, stops=stops, max_new_tokens=NEW, num_beams=2)


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_a_stream_is_the_text(twins, prompts):
    _, model, params = twins
    prompt = prompts[0][:1]
    tokens = continuations(model, params, prompt, **OPTIONS).tokens[0, 0].tolist()
    options = OPTIONS | {"eos_token_id": tokens[-1]}
    whole = spell(tokens[: tokens.index(tokens[-1])])  # the end is not shown
    for strings in ([], [whole[5:8]]):
        parts = list(stream(model, params, prompt[0].tolist(), stops=Stops(strings, spell), **options))
        assert "".join(parts) == (whole.split(strings[0])[0] if strings else whole)
        assert len(parts) > 1 and all(parts)
    compiled = [f._cache_size() for f in (start, advance)]
    assert list(stream(model, params, prompt[0, :3].tolist(), stops=Stops([], spell), **options))
    assert [f._cache_size() for f in (start, advance)] == compiled  # lengths of one bucket


def test_text_goes_on_from_a_token():
    stops = Stops(["c"], lambda tokens: " ".join(tokens))  # as SentencePiece's: no space before the first word
    assert stops.text(["a", "b"]) == "a b" and stops.behind("x").text(["a", "b", "c"]) == " a b "
    assert Stops([" a"], lambda tokens: " ".join(tokens)).behind("x").length(["b", "a", "b"]) == 2


@pytest.mark.parametrize("twins", ["llama"], indirect=True)
def test_a_stream_is_of_one_sequence(twins):
    for options in (dict(num_beams=2), dict(do_sample=True, num_return_sequences=2)):
        with pytest.raises(UserError, match="only one sequence"):
            next(stream(twins[1], twins[2], [5], stops=Stops([], spell), max_new_tokens=2, **options))
