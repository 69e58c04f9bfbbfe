"""Words as the Stanford tokenizer of the captioning scripts gives them, punctuation left out; seen from it."""

import pytest

from ftjax.metrics.ptb import ptb_words


@pytest.mark.parametrize("text, words", [
    ("It's 20-25 (cheap).", "it 's 20-25 -lrb- cheap -rrb-"),
    ("Prices: £20-£25, or £20 - 25; less than €30.", "prices # 20 # 25 or # 20 25 less than $ 30"),
    ("A kid-friendly, 5-star pub near Café Rouge...", "a kid-friendly 5-star pub near café rouge"),
    ("isn't can't won't cannot gonna they'd He'll I'm", "is n't ca n't wo n't can not gon na they 'd he 'll i 'm"),
    ("The Wrestlers' pub, 'The Mill'.", "the wrestlers pub the mill"),
    ('"hello" ‘quote’ “double” don’t', "hello quote double do n't"),
    ("hors d'oeuvre o'clock O'Donnell ra'ayat", "hors d'oeuvre o'clock o'donnell ra'ayat"),
    ("100% AT&T R&amp;D C# C++ US$ 5 @home #tag", "100 % at&t r&d c# c++ us$ 5 @home #tag"),
    ("km/h and/or 1/2 ½ 3-1/2 11/29/2010 18L/36R", "km/h and/or 1/2 1/2 3-1/2 11/29/2010 18l/36r"),
    ("8.3m 4.5-star 20GBP 1,000,000 10:30pm -5 5.yes", "8.3 m 4.5-star 20gbp 1,000,000 10:30 pm -5 5 yes"),
    ("Mr. Smith of St. Paul in the U.S., etc. No. 5, no.", "mr. smith of st. paul in the u.s. etc. no. 5 no"),
    ("the city center., close to it", "the city center. close to it"),
    ("Serie C. is here. It is by A. Storrs. Ends with A.", "serie c. is here it is by a. storrs ends with a"),
    ("foo@bar.com www.foo.com foo.com/ <b>hi</b>", "foo@bar.com www.foo.com foo.com / <b> hi </b>"),
    ("wait... what?! no!! -- yes --- [a] {b}", "wait what ?! no !! yes -lsb- a -rsb- -lcb- b -rcb-"),
    ("Madrid–Barajas (66063) 2014–15", "madrid barajas -lrb- 66063 -rrb- 2014 15"),
    ("", ""),
])  # fmt: skip
def test_words(text, words):
    assert " ".join(ptb_words(text)) == words
