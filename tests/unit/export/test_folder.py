"""A folder that appears whole or not at all."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.export.folder import need_libraries, new_folder, source_name


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "out") as (folder, _):
        (folder / "file").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out") as (folder, _):
        (folder / "file").with_name("half").rename(folder / "whole")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(UserError, match="full"), new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out"):
        raise AssertionError("nothing may be built")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"no_such_library.*ofa-hf\[onnx\]"):
        need_libraries("onnx", "json", "no_such_library")


def test_a_folder_is_named_without_its_path(tmp_path):
    assert source_name(str(tmp_path)) == tmp_path.name
    assert source_name("owner/name") == "owner/name"
