"""Reading, computing and writing at the same time, one item each, so that memory stays bounded.

The caller computes, in its own thread, with the modes and devices it has set there. What is read
or written beside it lives in one thread from first to last, as containers of video files want it,
and that thread has ended when the `with` block has: after an error or Ctrl-C as soon as the item in
hand is done.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def ahead(items: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
    """Gives the items of a generator; while one is used, the next is made in a thread.

    The generator runs and is closed in that thread. Its errors are raised where the item that
    failed would have come.
    """
    end = object()

    def coming() -> Iterator[Item]:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item

    with ThreadPoolExecutor(1, "ahead") as thread:
        try:
            yield coming()
        finally:
            thread.submit(items.close).result()


@contextmanager
def behind(
    context: AbstractContextManager[Callable[[Item], object]],
) -> Iterator[Callable[[Item], None]]:
    """Gives the function that `context` gives, to be called in a thread while the caller goes on.

    A call waits for the one before, and raises its error. The context is entered and left in
    that thread too; an error in the block, or of the last call, reaches it as it would without.
    """
    exits = ExitStack()

    def hand_over(item: Item) -> None:
        nonlocal last
        last.result()
        last = thread.submit(use, item)

    with ThreadPoolExecutor(1, "behind") as thread:
        try:
            last = thread.submit(exits.enter_context, context)
            use = last.result()
            yield hand_over
            last.result()
        except BaseException as error:
            thread.submit(exits.__exit__, type(error), error, error.__traceback__).result()
            raise
        thread.submit(exits.close).result()
