"""Ctrl-C, SIGTERM and a terminal that is closed: each ends a command, with time to close what it has open.

A terminal sends Ctrl-C to all that it started, and ``mlflow run`` and torchrun pass on to their children what these
have heard already. So what comes right after the first signal is the same wish, and does not end the closing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_WISH_S = 3.0
"""So long after Ctrl-C ``mlflow run`` may send SIGTERM, on a busy machine."""
_LOOK_AGAIN_S = 0.05
_told_s: float | None = None
_heard: set[int] = set()
_held = 0
_waits = False
"""Whether something is held back."""


def listen() -> None:
    """Become the handler of this process's signals: the first one raises KeyboardInterrupt, by its name."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job stays deaf to Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup stays nohup
        signal.signal(signal.SIGHUP, _hang_up)


def is_told() -> bool:
    """Whether this process is ending because it was told to."""
    return _told_s is not None


def has_heard(number: signal.Signals) -> bool:
    """Whether this signal has come, first or after another one."""
    return number in _heard


@contextmanager
def held_back() -> Iterator[None]:
    """Within, no signal interrupts: a process is being started, of which nobody would know. It does so afterwards."""
    global _held, _waits
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _waits and not _held:
            _waits = False
            signal.raise_signal(signal.SIGALRM)


@contextmanager
def deaf_children(*more: signal.Signals) -> Iterator[None]:
    """Processes that are started within never hear Ctrl-C or a hang-up, from their first moment on.

    Both go to the whole group, and whoever starts a process here ends it. Nor is the start itself interrupted: the
    child would wait for the rest of what it is told, and print a trace.
    """
    with held_back():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, *more})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def would_repeat() -> bool:
    """Whether a signal that came now would only repeat the first one."""
    return _told_s is not None and time.monotonic() - _told_s < SAME_WISH_S


def is_new_wish() -> bool:
    """Called by a handler: False where the signal only repeats the first one."""
    global _told_s
    if would_repeat():
        return False
    _told_s = time.monotonic() if _told_s is None else _told_s
    return True


def must_wait(frame: FrameType | None) -> bool:
    """Whether this is no moment to interrupt: see `held_back`; or this runs in a ``__del__``, where what is raised is
    printed and lost, and the work would go on.
    """
    while frame is not None and not _held:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return bool(_held)


def look_again() -> None:
    """Have SIGALRM sent when it may be the moment, until it is stopped: one may go to a thread of C code."""
    global _waits
    if _held:  # no timer: a fork that takes longer than it is begun again and again, for ever
        _waits = True
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S, _LOOK_AGAIN_S)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _heard.add(signum)
    is_second = is_told()
    if not is_new_wish():
        return
    if is_second and signum == signal.SIGTERM:  # it does not want to wait
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    _raise(signal.Signals(signum).name, frame)


def _raise(name: str, frame: FrameType | None) -> None:
    if must_wait(frame):
        signal.signal(signal.SIGALRM, lambda _, then: _raise(name, then))
        look_again()
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt(name)


def _hang_up(signum: int, frame: FrameType | None) -> None:
    """As SIGTERM, whoever hears that now: a server that drains, a study that ends its workers."""
    signal.raise_signal(signal.SIGTERM)
