import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftjax import tree
from ftjax.methods.lora import LoRA

KEYS = st.text("abc", min_size=1, max_size=2)
LEAVES = st.tuples(st.integers(0, 3), st.integers(1, 3)).map(np.ones)
DICTS = st.dictionaries(KEYS, st.recursive(LEAVES, lambda x: st.dictionaries(KEYS, x, min_size=1, max_size=3)))


def same(a, b):
    """Equal in structure, and leaf for leaf the same object."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(lambda x, y: x is y, *map(jax.tree.leaves, (a, b)))
    )


@given(DICTS)
def test_unflatten_inverts_flatten(values):
    assert same(tree.unflatten(tree.flatten(values)), values)


@given(DICTS, st.randoms())
def test_join_inverts_split_and_each_leaf_is_on_one_side(values, random):
    labels = jax.tree.map(lambda _: random.choice([tree.FREEZE, "head", "adapter"]), values)
    train, frozen = tree.split(values, labels)
    assert same(tree.join(train, frozen), values)
    assert tree.flatten(train).keys().isdisjoint(tree.flatten(frozen))
    assert tree.flatten(train).keys() == {p for p, name in tree.flatten(labels).items() if name != tree.FREEZE}
    assert tree.count(values) == tree.count(train) + tree.count(frozen)


def test_adapter_objects_keep_their_form_through_split_and_join():
    adapter = LoRA(a=np.ones((3, 2)), b=np.ones((2, 3)), scale=np.ones(2), rate=None)
    values = {"q": {"lora": adapter}}
    labels = tree.label(values, [("lora/[ab]$", "adapter"), ("", tree.FREEZE)])
    train, frozen = tree.split(values, labels)
    assert isinstance(train["q"]["lora"], LoRA) and train["q"]["lora"].scale is None
    assert same(tree.join(train, frozen), values)
    assert list(tree.flatten(values)) == ["q/lora/a", "q/lora/b", "q/lora/scale"]


def test_the_first_rule_that_is_found_wins():
    rules = [("b$", "first"), ("a", "second"), ("b", "third")]
    assert [tree.first_match(rules, path) for path in ("a/b", "a/c", "b/c")] == ["first", "second", "third"]
    with pytest.raises(KeyError):
        tree.first_match(rules, "c")


def test_labels_cover_every_leaf_or_name_the_others():
    values = {"a": {"b": np.ones(1), "c": np.ones(1)}, "d": np.ones(1)}
    with pytest.raises(ValueError, match="a/c, d"):
        tree.label(values, [("b$", "x")])
    assert tree.flatten(tree.label(values, [("b$", "x"), ("", "y")])) == {"a/b": "x", "a/c": "y", "d": "y"}


def test_map_paths_passes_path_and_leaves_of_all_trees():
    values = {"a": {"b": 1}, "c": 2}
    assert tree.map_paths(lambda p, x, y: (p, x, y), values, {"a": {"b": 10}, "c": 20}) == {
        "a": {"b": ("a/b", 1, 10)},
        "c": ("c", 2, 20),
    }
