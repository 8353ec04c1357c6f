import json

import pytest

from ofa_hf.errors import UserError
from ofa_hf.prediction.outputs import AnswerFile, Format
from ofa_hf.prediction.processes import Processes, SharedAnswerFile, open_answer_file, parts_of


FILES = [f"{name}.jpg" for name in "fbdace"]
ONE = [{"text": "红色的\n裙子", "score": -0.5}]


class Alone(Processes):
    """One of several processes, whose others are not waited for."""

    def __init__(self, rank: int, count: int):
        super().__init__({"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"})

    def _all_of(self, value):
        return [value]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "captions [1].jsonl"


def caption(path, rank, count, files=FILES, stop_after=None):
    """One process's whole life; killed before it wrote more than so many images."""
    processes = Alone(rank, count)
    with SharedAnswerFile(path, Format("caption", 1), processes, files) as output:
        todo = [file for file in processes.share(files) if str(path.parent / file) not in output.done]
        for file in todo[:stop_after]:
            output.write(file, ONE)
        if stop_after is not None:
            raise KeyboardInterrupt
    return todo


def names_in(path):
    return [json.loads(line)["file"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_process_is_alone_unless_a_launcher_says_otherwise():
    assert [Processes({}).count, Processes({"WORLD_SIZE": "4"}).count] == [1, 1]
    team = [Processes({"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "x"}) for rank in range(3)]
    assert sorted(file for each in team for file in each.share(FILES)) == sorted(FILES)
    assert [each.is_first for each in team] == [True, False, False]


def test_the_results_of_several_processes_become_one_file_in_order(path):
    caption(path, 1, 2)
    assert not path.exists()
    caption(path, 0, 2)
    assert names_in(path) == FILES
    assert parts_of(path) == []


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_what_killed_processes_did_is_kept_by_any_number_of_processes(path, ending):
    path = path.with_suffix(ending)
    with AnswerFile(path, Format("caption", 1)) as whole:
        whole.write(FILES[0], ONE)
    for rank in range(3):
        with pytest.raises(KeyboardInterrupt):
            caption(path, rank, 3, stop_after=1)
    torn = parts_of(path)[2]
    torn.write_bytes(torn.read_bytes()[:-3])  # killed in the middle of a line
    assert caption(path, 1, 2) == ["e.jpg"]
    assert caption(path, 0, 2) == ["d.jpg", "c.jpg"]
    with AnswerFile(path, Format("caption", 1)) as whole:
        assert list(whole.answers()) == [str(path.parent / file) for file in FILES]
        assert set(map(tuple, whole.answers().values())) == {("红色的\n裙子",)}
    assert path.read_text(encoding="utf-8").count("红色的") == len(FILES)


def test_one_process_takes_over_what_several_left(path):
    with pytest.raises(KeyboardInterrupt):
        caption(path, 1, 2, stop_after=2)
    with open_answer_file(path, Format("caption", 1), Processes({}), FILES) as output:
        assert output.done == {str(path.parent / file) for file in ("b.jpg", "a.jpg")}
    assert names_in(path) == ["b.jpg", "a.jpg"]
    assert parts_of(path) == []


def test_a_merge_that_is_killed_anywhere_is_made_up_for(path):
    caption(path, 1, 2)
    part = parts_of(path)[0]
    rows = part.read_bytes()
    for cut in range(len(rows) + 1):
        part.write_bytes(rows)
        path.write_bytes(rows[:cut])  # what a killed merge had written
        with open_answer_file(path, Format("caption", 1), Processes({}), FILES):
            pass
        assert path.read_bytes() == rows, cut


def test_captions_of_several_models_are_kept_apart(path):
    order, processes = FILES[:1], Alone(0, 1)
    for model in ("shop/a", "shop/b"):
        with SharedAnswerFile(path, Format("caption", 1, model), processes, order) as output:
            assert not output.done
            output.write(order[0], ONE)
    assert [json.loads(line)["model"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        "shop/a",
        "shop/b",
    ]


def test_results_that_other_machines_keep_to_themselves_are_missed(path):
    with pytest.raises(UserError, match=r"part-1\.jsonl are not here.*all of them see"):
        caption(path, 0, 2)


def test_another_run_on_the_same_file_is_refused(path):
    with SharedAnswerFile(path, Format("caption", 1), Alone(1, 2), FILES) as output:
        with pytest.raises(UserError, match="being written by another run"):
            SharedAnswerFile(path, Format("caption", 1), Alone(1, 2), FILES)
        output.write(FILES[1], ONE)


def test_questions_about_one_file_are_rows_of_their_own(path):
    format = Format("answer", 1, names=("file", "question"))
    names = [("a.jpg", "红?"), ("a.jpg", "绿?"), ("b.jpg", "红?")]
    for rank in (1, 0):
        with SharedAnswerFile(path, format, Alone(rank, 2), names) as output:
            for name in names[rank::2]:
                output.write(name, ONE)
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert [(row["file"], row["question"]) for row in rows] == names
    with open_answer_file(path, format, Processes({}), names) as output:
        assert output.done == {format.key(name) for name in names}
