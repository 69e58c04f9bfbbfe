"""What is left out."""

import pytest

from ftjax.selfinstruct.filters import Pool, good_instances, wrong_with


@pytest.mark.parametrize(
    ("instruction", "wrong"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("Write a poem", "length"),
        ("Write a short poem", None),
        (" ".join(["word"] * 150), None),
        (" ".join(["word"] * 151), "length"),
        ("- write a short poem", "sign"),
        ("(a) write a poem", "sign"),
        ("Écris un poème court", "sign"),
        ("3 words that rhyme please", None),
        ("Describe the Image below for me", "unseen"),
        ("Look at both pictures, and compare", "unseen"),
        ("Draw a graph of this", "unseen"),
        ("Imagine a paragraph of graphite photography", None),
    ],
)
def test_instructions(instruction, wrong):
    assert wrong_with(instruction) == wrong


def test_the_likest():
    pool = Pool(["Write a short poem about cats", "Add two numbers"])
    assert pool.nearest("Add three numbers please now") == (2 * 2 / 8, 1)
    assert pool.nearest("write, a SHORT poem; about cats!") == (1.0, 0)
    pool.add("Sing")
    assert pool.nearest("sing") == (1.0, 2) and len(pool) == 3
    pool.cut(2)
    assert pool.nearest("sing") == (0.0, 0) and Pool([]).nearest("sing") == (0.0, -1)


def test_instances():
    long = " ".join(["w"] * 301)
    pairs = [("a", "b"), ("a", "b"), ("c", ""), ("d", "d"), ("e", "f"), ("e", "g"), ("", "h"), (long, "i"), ("j", long)]
    assert good_instances(pairs) == [("a", "b"), ("", "h")]
    assert good_instances([("", "h"), ("", "i")]) == []
