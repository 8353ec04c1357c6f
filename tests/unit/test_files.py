"""A file or folder appears whole or not at all, a good one is never lost, and JSON is read with limits."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ofa_hf import files
from ofa_hf.errors import UserError
from ofa_hf.files import file_digest, hub_files, new_folder, read_json, write_bytes, write_json, write_text


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def replace_anything(target):
    """A check that refuses nothing."""


def write_folder(target, text, check=replace_anything):
    with new_folder(target, check) as (folder, _):
        (folder / "model.txt").write_text(text)


# ---------------------------------------------------------------------------------------------------- files


def test_json_is_written_for_people_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"prompt": "图片描述了什么?", "beams": 5})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "prompt": "图片描述了什么?",\n  "beams": 5\n}\n'
    assert read_json(tmp_path / "a.json") == {"prompt": "图片描述了什么?", "beams": 5}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "as JSON"),
        (b"[1]", "it holds a list"),
        (b"\xff\xfe\x00", "as JSON"),
        (b"[" * 100_000, "as JSON"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "at most 1,000 are accepted"),
    ],
)
def test_what_is_not_a_small_json_object_is_refused_with_advice(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json cannot be read.*{reason}.*Convert again\.$"):
        read_json(tmp_path / "a.json", "Convert again.", max_bytes=1000 if b"x" in content else 10**6)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json cannot be read: No such file"):
        read_json(tmp_path / "nothing.json")


def test_a_failed_write_keeps_the_earlier_file_and_leaves_no_draft(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_that_travel_are_those_whose_names_say_so():
    found = {file.name for file in hub_files()}
    assert {"configuration_ofa.py", "modeling_ofa.py", "modeling_ofa_resnet.py", "versions_ofa.py"} <= found
    assert not found & {"__init__.py", "errors.py", "files.py", "fresh_process.py", "models.py"}


# -------------------------------------------------------------------------------------------------- folders


def test_a_finished_folder_is_moved_into_place_and_nothing_else_stays(target):
    with new_folder(target) as (folder, scratch):
        (folder / "model.txt").write_text("new")
        (scratch / "notes").write_text("x")
        assert not target.exists()
    assert names(target) == ["model.txt"]
    assert names(target.parent) == ["out"]


def test_a_failure_leaves_nothing(target):
    def fail():
        with new_folder(target):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(target.parent) == []


def test_leftovers_of_a_killed_process_are_removed(target):
    (target.parent / ".out.unfinished-abc" / "folder").mkdir(parents=True)
    write_folder(target, "new")
    assert names(target.parent) == ["out"]


def test_a_folder_that_was_being_replaced_when_the_process_died_comes_back(target):
    previous = target.parent / ".out.unfinished-abc" / "previous"
    previous.mkdir(parents=True)
    (previous / "model.txt").write_text("old")
    with pytest.raises(UserError, match="exists already"), new_folder(target):
        pass
    assert (target / "model.txt").read_text() == "old"


def test_a_replaced_folder_does_not_come_back_after_the_new_one_was_deleted(target):
    replaced = target.parent / ".out.unfinished-abc" / "replaced"
    replaced.mkdir(parents=True)
    with new_folder(target):
        assert not target.exists()


def test_a_failed_move_puts_the_previous_folder_back(target):
    write_folder(target, "old")
    with pytest.raises(FileNotFoundError), new_folder(target, replace_anything) as (folder, _):
        folder.rmdir()
    assert (target / "model.txt").read_text() == "old"


def test_an_earlier_folder_is_replaced_only_where_the_check_allows_it(target):
    target.mkdir()
    write_folder(target, "first", files.refuse_existing)  # an empty folder is no obstacle
    with pytest.raises(UserError, match="never replaced"):
        write_folder(target, "second", files.refuse_existing)
    write_folder(target, "second")
    assert (target / "model.txt").read_text() == "second"


def hold(target, ready, done):
    with new_folder(target):
        ready.set()
        done.wait(20)


def test_two_processes_do_not_write_one_folder(target):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(target, ready, done))
    process.start()
    assert ready.wait(20)
    with pytest.raises(UserError, match="Another process"), new_folder(target):
        pass
    done.set()
    process.join()


def test_a_child_that_outlived_its_killed_parent_and_still_writes_does_not_stop_the_next_process(target):
    scratch = target.parent / ".out.unfinished-abc" / "scratch"
    scratch.mkdir(parents=True)
    end = time.monotonic() + 0.5

    def write():
        number = 0
        while time.monotonic() < end:
            number += 1
            with suppress(FileNotFoundError, FileExistsError):  # the folder is gone, or was while it was asked for
                scratch.mkdir(parents=True, exist_ok=True)
                (scratch / str(number)).touch()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        write_folder(target, "new")
        writing.result()
    assert names(target) == ["model.txt"]


def test_a_folder_that_cannot_be_written_is_said_before_work(tmp_path):
    files.make_writable(tmp_path / "new" / "deep")
    assert names(tmp_path / "new") == ["deep"]
    assert names(tmp_path / "new" / "deep") == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file.* cannot be written: .*Name one that you may write to"):
            files.make_writable(folder)
