import pytest
from ml_collections import ConfigDict

from ftjax.data.tasks.table import file_of
from ftjax.errors import UserError
from ftjax.train.fields import Fields, leaves

DEFAULT = dict(seed=0, steps=None, method=dict(name="lora", rank=8, targets=("q",)))


def config(**changes):
    made = ConfigDict(DEFAULT)
    made.update_from_flattened_dict(changes)
    return made


def test_reads_of_nested_fields_are_the_configs():
    f = Fields(config())
    assert (f.seed, f.steps, f.method.rank, f.method.targets) == (0, None, 8, ("q",))
    assert "rank" in f.method and "alpha" not in f.method
    assert f.method.rank == 8


def test_an_unknown_field_is_named_with_its_path():
    with pytest.raises(AttributeError, match=r"config\.method\.alpha does not exist"):
        _ = Fields(config()).method.alpha


def test_what_was_set_and_not_read_is_an_error_that_names_each():
    f = Fields(config(**{"seed": 1, "method.rank": 4}))
    with pytest.raises(UserError, match=r"config\.method\.rank=4, config\.seed=1: set, but nothing"):
        f.check_all_read(config())
    _ = f.seed, f.method.rank
    f.check_all_read(config())


def test_defaults_may_stay_unread_and_a_field_that_the_default_lacks_may_not():
    Fields(config()).check_all_read(config())
    more = config()
    more.extra = 1
    with pytest.raises(UserError, match=r"config\.extra=1"):
        Fields(more).check_all_read(config())


def test_the_files_of_all_splits_are_read_as_one():
    files = {"train": "a.jsonl", "validation": "b.jsonl", "test": "c.jsonl"}
    default = ConfigDict(dict(files=dict.fromkeys(files, "")))
    f = Fields(ConfigDict(dict(files=files)))
    assert file_of(f, "train") == "a.jsonl"
    f.check_all_read(default)


def test_asking_whether_a_field_exists_is_no_read():
    f = Fields(config(seed=1))
    assert "seed" in f
    with pytest.raises(UserError, match="seed"):
        f.check_all_read(config())


def test_leaves_are_dotted():
    assert dict(leaves(config())) == {"seed": 0, "steps": None, "method.name": "lora", "method.rank": 8,
                                      "method.targets": ("q",)}  # fmt: skip
