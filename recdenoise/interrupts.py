"""Signals that ask a program to stop, turned into an event that it looks at when it can stop well."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests(forgiving: float = 0.0) -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, so that training stops between two steps and never inside one.

    A second signal interrupts at once. Outside the main thread, where handlers cannot be set, the event stays unset.

    Args:
        forgiving: seconds after the first signal in which further ones count as the same request.
    """
    event = threading.Event()
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        nonlocal first
        if not event.is_set():
            first = time.monotonic()
            event.set()
        elif time.monotonic() - first >= forgiving:
            raise KeyboardInterrupt

    try:
        for number in previous:
            signal.signal(number, request)
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
