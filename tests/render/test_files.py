"""A file appears whole or not at all."""

import pytest

from render.files import replacing, write_atomically


@pytest.mark.parametrize(
    ("data", "written"),
    [("é\n", "é\n".encode()), (b"\x00\xff", b"\x00\xff"), ("\ud800", b"?")],
)
def test_text_and_bytes_replace_what_was_there(tmp_path, data, written):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_atomically(path, data)
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_bytes(b"half")
        assert path.read_bytes() == b"before"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", "x")
