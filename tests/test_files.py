from ftjax.files import whole


def test_what_is_written_again_takes_the_place_of_files_in_folders_too(tmp_path):
    folder = tmp_path / "model"
    for text, names in ("old", ("a", "inside/b", "inside/c")), ("new", ("a", "inside/b", "another/deep/d")):
        with whole(folder) as aside:
            for name in names:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_text(text)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a": "new", "inside/b": "new", "inside/c": "old", "another/deep/d": "new"}
    assert list(tmp_path.iterdir()) == [folder]
