"""Ctrl-C and SIGTERM, handled between two steps."""

import signal
import threading
from types import TracebackType


class Interruptible:
    """Records the first Ctrl-C or SIGTERM; a second one interrupts.

    This is a context manager. Interrupting a step would leave weights and optimizer state
    inconsistent, so the training loop checks `requested` after each step. Outside the main thread
    nothing changes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _record(self, number: int, frame: object) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()
