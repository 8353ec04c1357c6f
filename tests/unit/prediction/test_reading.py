"""Promises of `ofa_hf.prediction.reading`: in order, past failures, and never further ahead than asked."""

import pytest

from ofa_hf.image_loading_ofa import ImageError
from ofa_hf.prediction.reading import num_readers, read_ahead


def read(item: int) -> int:
    if item == 2:
        raise ImageError("2 is broken")
    if item == 3:
        raise MemoryError
    return item * item


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_results_come_in_order_and_failures_as_image_errors(ahead):
    results = list(read_ahead(range(5), read, ahead))
    assert [item for item, _ in results] == [0, 1, 2, 3, 4]
    assert [result for _, result in results if not isinstance(result, ImageError)] == [0, 1, 16]
    assert "2 is broken" in str(results[2][1])
    assert "3 does not fit into memory" in str(results[3][1])


def test_reading_stays_within_the_asked_distance():
    asked = []

    def items():
        for index in range(100):
            asked.append(index)
            yield index

    reader = read_ahead(items(), lambda item: item, ahead=3)
    next(reader)
    assert len(asked) == 4
    reader.close()


def test_an_error_that_is_no_image_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([0], lambda item: 1 // item, ahead=1))


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert num_readers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_readers() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert num_readers() == 1
