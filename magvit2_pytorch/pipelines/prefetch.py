"""Prefetching and background writing.

Reading, computing and writing happen at the same time, in bounded memory. The caller computes in
its own thread, with the modes and devices it has set there. Reading and writing use one background
thread each. That thread opens, uses and closes its file, as containers of video files require, and
ends with the `with` block; after an error or Ctrl-C it first finishes the current item.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetch(items: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """Yields an iterator that computes the next item in a background thread.

    The generator runs and is closed in that thread. Its error is raised in place of the item that
    failed.
    """
    end = object()

    def prefetched() -> Iterator[Item]:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item

    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            yield prefetched()
        finally:
            thread.submit(items.close).result()


@contextmanager
def background_writer(
    context: AbstractContextManager[Callable[[Item], object]],
) -> Iterator[Callable[[Item], None]]:
    """Yields the function of `context`, called in a background thread.

    A call waits for the previous one and raises its error. The context is entered and exited in
    the same thread; it receives errors of the block and of the last call as if there were no
    thread.
    """
    exits = ExitStack()

    def submit(item: Item) -> None:
        nonlocal last
        last.result()
        last = thread.submit(use, item)

    with ThreadPoolExecutor(1, "background_writer") as thread:
        try:
            last = thread.submit(exits.enter_context, context)
            use = last.result()
            yield submit
            last.result()
        except BaseException as error:
            thread.submit(exits.__exit__, type(error), error, error.__traceback__).result()
            raise
        thread.submit(exits.close).result()
