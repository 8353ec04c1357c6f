"""Read images ahead in threads; their number is fixed, so that memory stays flat."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from ofa_hf.image_loading_ofa import ImageError


MAX_READERS = 16  # threads; decoding a large photo takes a core 15 ms, a fast GPU needs an image every 0.5 ms

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], ahead: int
) -> Iterator[tuple[Item, Result | ImageError]]:
    """Apply `read` to items in threads, at most `ahead` items in advance.

    Yields:
        `(item, result)` in order; the result is an `ImageError` if reading raised one or ran out of memory.
    """

    def attempt(item: Item) -> Result | ImageError:
        try:
            return read(item)
        except ImageError as error:
            return error
        except MemoryError as error:
            return ImageError(f"{item} does not fit into memory {error}. Make it smaller first.")

    items, waiting = iter(items), deque()
    pool = ThreadPoolExecutor(num_readers(), thread_name_prefix="read_ahead")
    try:
        waiting.extend((item, pool.submit(attempt, item)) for item in islice(items, ahead))
        while waiting:
            item, future = waiting.popleft()
            waiting.extend((item, pool.submit(attempt, item)) for item in islice(items, 1))
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def num_readers() -> int:
    """Number of threads: this process's share of the cores of the machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return max(1, min(MAX_READERS, (os.cpu_count() or 1) // processes))
