"""What both kinds of export share; that a folder appears whole or not at all: `test_files.py`."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.export import folder
from ofa_hf.export.folder import need_libraries, new_export, source_name
from ofa_hf.models import Tasks
from ofa_hf.tasks_ofa import TASKS


def test_a_full_disk_is_reported_and_nothing_is_kept(tmp_path):
    with pytest.raises(UserError, match="full"), new_export(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists already"), new_export(tmp_path / "out"):
        raise AssertionError("nothing may be built")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"no_such_library.*ofa-hf\[onnx\]"):
        need_libraries("onnx", "json", "no_such_library")


def test_a_folder_is_named_without_its_path(tmp_path):
    assert source_name(str(tmp_path)) == tmp_path.name
    assert source_name("owner/name") == "owner/name"


@pytest.mark.parametrize(("task", "as_default_only"), [("caption", True), ("image_generation", False)])
def test_a_model_that_draws_is_refused_by_name(monkeypatch, task, as_default_only):
    tasks = Tasks({name: TASKS[name] for name in ("caption", "image_generation")}, task, "en")
    monkeypatch.setattr(folder, "read_tasks", lambda model: tasks)
    with pytest.raises(UserError, match=r"my/model draws images \(task image_generation\)"):
        folder.refuse_drawer("my/model")
    if as_default_only:
        folder.refuse_drawer("my/model", as_default_only=True)
    else:
        with pytest.raises(UserError, match="draws images"):
            folder.refuse_drawer("my/model", as_default_only=True)
