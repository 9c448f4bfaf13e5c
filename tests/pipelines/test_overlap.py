"""Beside the caller: in order, one item at a time, in one thread, and gone when it is over."""

import _thread
import threading
from contextlib import contextmanager

import pytest

from magvit2_pytorch.pipelines.prefetch import background_writer, prefetch

LONG_S = 20
"""What is waited for comes at once, or not at all."""


class Broken(Exception):
    """An error that nobody else raises."""


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Source:
    """Numbers, and what was seen while they were made."""

    def __init__(self, count, fail_at=None):
        self.count, self.fail_at = count, fail_at
        self.made, self.threads = [], set()
        self.closed = False
        self.has_made = [threading.Event() for _ in range(count)]

    def numbers(self):
        self.threads.add(threading.get_ident())
        try:
            for number in range(self.count):
                if number == self.fail_at:
                    raise Broken(number)
                self.made.append(number)
                self.has_made[number].set()
                yield number
        finally:
            self.threads.add(threading.get_ident())
            self.closed = True


class Sink:
    """A context that gives a function, and what was seen of both."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.used, self.threads, self.left_with = [], set(), "nothing yet"

    @contextmanager
    def entered(self):
        self.threads.add(threading.get_ident())
        try:
            yield self.use
        except BaseException as error:
            self.threads.add(threading.get_ident())
            self.left_with = error
            raise
        self.threads.add(threading.get_ident())
        self.left_with = None

    def use(self, item):
        self.threads.add(threading.get_ident())
        if item == self.fail_at:
            raise Broken(item)
        self.used.append(item)


def take(items, count, error=None):
    """Takes so many, or all, and raises the error if there is one."""
    got = []
    with prefetch(items) as coming:
        for item in coming:
            got.append(item)
            if len(got) == count:
                break
        if error is not None:
            raise error
    return got


def hand_over(context, numbers, error=None, handed=None):
    """Hands numbers over, notes which, and raises the error if there is one."""
    with background_writer(context) as use:
        for number in numbers:
            use(number)
            if handed is not None:
                handed.append(number)
        if error is not None:
            raise error


def is_one_other_thread(threads):
    return len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_what_is_made_ahead_is_the_same(count):
    source = Source(count)
    with prefetch(source.numbers()) as coming:
        assert list(coming) == list(range(count))
        assert list(coming) == []
    assert source.closed
    assert is_one_other_thread(source.threads)


def test_the_next_item_is_made_while_this_one_is_used_and_no_other():
    source = Source(5)
    with prefetch(source.numbers()) as coming:
        for number in coming:
            if number < 4:
                assert source.has_made[number + 1].wait(LONG_S)
                assert source.made == list(range(number + 2))


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_error_comes_in_the_place_of_its_item(fail_at):
    source, got = Source(5, fail_at), []
    with pytest.raises(Broken, match=str(fail_at)), prefetch(source.numbers()) as coming:
        got.extend(coming)  # keeps what came before an error
    assert got == list(range(fail_at))
    assert source.closed


@pytest.mark.parametrize("taken", [1, 3])
def test_who_stops_early_closes_the_source_in_its_own_thread(taken):
    source = Source(100)
    assert take(source.numbers(), taken) == list(range(taken))
    assert source.closed
    assert len(source.made) <= taken + 1
    assert is_one_other_thread(source.threads)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit])
def test_an_error_of_the_caller_closes_the_source_and_outweighs_its_errors(error):
    source = Source(100, fail_at=2)
    with pytest.raises(error, match="ours"):
        take(source.numbers(), 2, error("ours"))
    assert source.closed
    assert is_one_other_thread(source.threads)


def test_a_source_that_nobody_asked_is_not_begun():
    source = Source(3)
    with pytest.raises(Broken), prefetch(source.numbers()):
        raise Broken
    assert not source.made


def test_an_error_while_closing_is_not_lost():
    def numbers():
        try:
            yield from range(5)
        finally:
            raise Broken("closing")

    with pytest.raises(Broken, match="closing"):
        take(numbers(), 1)


def test_ctrl_c_while_waiting_for_an_item():
    going_on = threading.Event()
    closed = []

    def numbers():
        try:
            yield 0
            _thread.interrupt_main()
            going_on.wait(0.2)  # still busy when the interrupt arrives
            yield 1
            yield 2
        finally:
            closed.append(threading.get_ident())

    with pytest.raises(KeyboardInterrupt):
        take(numbers(), 3)
    assert is_one_other_thread(set(closed))


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_what_is_handed_over_is_used_in_order(count):
    sink = Sink()
    with background_writer(sink.entered()) as use:
        for number in range(count):
            use(number)
    assert sink.used == list(range(count))
    assert sink.left_with is None
    assert is_one_other_thread(sink.threads)


def test_the_caller_goes_on_while_an_item_is_used_but_not_two_further():
    goes_on = [threading.Event() for _ in range(4)]
    handed, used = [], []

    @contextmanager
    def entered():
        def use(number):
            # In one thread nobody would ever say so.
            assert goes_on[number].wait(LONG_S)
            assert len(handed) - len(used) <= 2
            used.append(number)

        yield use

    with background_writer(entered()) as use:
        for number in range(4):
            use(number)
            handed.append(number)
            assert len(used) >= number - 1
            goes_on[number].set()
    assert used == [0, 1, 2, 3]


@pytest.mark.parametrize("fail_at", [0, 2, 4])
def test_an_error_in_use_reaches_the_caller_and_the_context(fail_at):
    sink, handed = Sink(fail_at), []
    with pytest.raises(Broken, match=str(fail_at)) as raised:
        hand_over(sink.entered(), range(5), handed=handed)
    assert sink.left_with is raised.value
    assert sink.used == list(range(fail_at))
    assert handed == list(range(fail_at + 1))
    assert is_one_other_thread(sink.threads)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_of_the_block_reaches_the_context(error, count):
    sink = Sink()
    with pytest.raises(error, match="ours") as raised:
        hand_over(sink.entered(), range(count), error("ours"))
    assert sink.left_with is raised.value
    assert sink.used == list(range(count))
    assert is_one_other_thread(sink.threads)


def test_a_context_that_cannot_be_entered_or_left_says_so():
    @contextmanager
    def entered(where):
        if where == "entering":
            raise Broken(where)
        yield print
        raise Broken(where)

    began = False
    with pytest.raises(Broken, match="entering"), background_writer(entered("entering")):
        began = True
    assert not began
    with pytest.raises(Broken, match="leaving"), background_writer(entered("leaving")):
        began = True
    assert began


def test_ctrl_c_while_waiting_for_the_item_before():
    sink = Sink()

    def slow(item):
        _thread.interrupt_main()
        threading.Event().wait(0.2)
        sink.used.append(item)

    sink.use = slow
    with pytest.raises(KeyboardInterrupt):
        hand_over(sink.entered(), range(3))
    assert isinstance(sink.left_with, KeyboardInterrupt)
    assert sink.used[0] == 0
    assert len(sink.used) < 3


def test_both_together():
    source, sink = Source(20), Sink()
    with prefetch(source.numbers()) as coming, background_writer(sink.entered()) as use:
        for number in coming:
            use(number * 2)
    assert sink.used == list(range(0, 40, 2))
    assert not sink.threads & source.threads
