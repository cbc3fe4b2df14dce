"""Signals that ask a program to stop, turned into an event that it looks at when it can stop well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, so that training stops between two steps and never inside one.

    A second signal interrupts at once. Outside the main thread, where handlers cannot be set, the event stays unset.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    try:
        for number in previous:
            signal.signal(number, request)
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
