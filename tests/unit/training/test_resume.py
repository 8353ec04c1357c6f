"""Which checkpoint a run goes on from, and a full disk."""

import errno

import pytest

from ofa_hf.errors import UserError
from ofa_hf.training.resume import checkpoint_to_resume, refuse_old_run, saving_to


def write_checkpoint(folder, step: int, state: str | None = "{}"):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_complete_checkpoint_is_taken(parse, tmp_path):
    folder = tmp_path / "out"
    write_checkpoint(folder, 9)
    newest = write_checkpoint(folder, 10)
    write_checkpoint(folder, 11, state=None)
    write_checkpoint(folder, 12, state='{"global_st')
    assert checkpoint_to_resume(parse(resume_from_checkpoint=True)[1]) == str(newest)
    assert checkpoint_to_resume(parse(resume_from_checkpoint="last")[1]) == str(newest)


def test_without_a_wish_nothing_is_resumed(parse):
    assert checkpoint_to_resume(parse()[1]) is None
    assert checkpoint_to_resume(parse(resume_from_checkpoint="false")[1]) is None


def test_a_run_without_checkpoints_cannot_be_resumed(parse):
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint_to_resume(parse(resume_from_checkpoint=True)[1])


def test_a_named_checkpoint_must_be_complete(parse, tmp_path):
    good, bad = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 4, state=None)
    assert checkpoint_to_resume(parse(resume_from_checkpoint=str(good))[1]) == str(good)
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        checkpoint_to_resume(parse(resume_from_checkpoint=str(bad))[1])


def test_a_new_run_does_not_mix_with_an_old_one(parse, tmp_path):
    refuse_old_run(parse()[1])
    write_checkpoint(tmp_path / "out", 5)
    refuse_old_run(parse(resume_from_checkpoint=True)[1])
    with pytest.raises(UserError, match="has checkpoints of an earlier run"):
        refuse_old_run(parse()[1])


def test_a_run_killed_before_its_first_checkpoint_was_complete_may_start_again(parse, tmp_path):
    write_checkpoint(tmp_path / "out", 5, state=None)
    refuse_old_run(parse()[1])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["device", "quota", "torch position", "torch write", "safetensors"],
)
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(tmp_path, error):
    folder = tmp_path / "checkpoint-4"

    def save_half() -> None:
        with saving_to(folder):
            folder.mkdir()
            (folder / "model.safetensors").write_text("half")
            raise error

    with pytest.raises(UserError, match="Cannot save .*checkpoint-4: its disk is full"):
        save_half()
    assert not folder.exists()


def test_a_full_disk_never_removes_what_was_there_before(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(UserError, match="is full"), saving_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "kept").exists()


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), saving_to(tmp_path):
        raise KeyError("x")
