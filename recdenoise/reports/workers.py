"""Runs jobs in processes of their own: several at a time, turn by turn, longest first, each folder locked meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import recdenoise
from recdenoise import checkpoint
from recdenoise.errors import UserError

COMMAND = (sys.executable, "-m", "recdenoise.cli")
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0
"""How long a process may take to save its state after a stop was asked for."""
LEAST_SHARE = 0.02
"""Of a job that must be done before its time left is taken from that."""


@dataclass(frozen=True)
class Job:
    """A command of this package that fills one folder.

    Attributes:
        name: for people.
        folder: what it writes to; ``log.txt`` and ``job.json`` are put there too.
        arguments: of ``recdenoise``.
        done: the file that the finished job leaves in its folder.
        kind: jobs of one kind take about the same time.
        guess: how long it may take, in any unit that all jobs share.
        wanted: what ``done``, a JSON file, must hold; nothing by default.
        also: further files that the finished job leaves.
        turn: jobs of a lower turn begin first; within one the longest do.
        share: looks into the folder and says how much of the work is done, 0 to 1; ``None`` where it cannot tell.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    done: str
    kind: tuple[str, ...] = ()
    guess: float = 1.0
    wanted: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    turn: int = 0
    share: Callable[[Path], float | None] | None = None

    @property
    def finished(self) -> bool:
        """Whether its files are there and ``done`` holds what is wanted."""
        path = self.folder / self.done
        if not all((self.folder / name).is_file() for name in (self.done, *self.also)):
            return False
        if not self.wanted:
            return True
        with contextlib.suppress(ValueError, AttributeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            return all(record.get(key) == value for key, value in self.wanted.items())
        return False


@dataclass
class Active:
    """A job at work; ``share`` of it was done before."""

    job: Job
    process: subprocess.Popen[bytes]
    started: float
    started_at: str
    share: float = 0.0

    def expected(self) -> float | None:
        """Seconds that this attempt takes from beginning to end, by how far it has come."""
        now = self.job.share(self.job.folder) if self.job.share is not None else None
        if now is None or now - self.share < LEAST_SHARE:
            return None
        return (time.monotonic() - self.started) * (1.0 - self.share) / (now - self.share)


class Expectation:
    """Seconds that a job will take: as its kind took, else its guess scaled by what finished jobs took."""

    def __init__(self) -> None:
        self.by_kind: dict[tuple[str, ...], list[float]] = {}
        self.seconds = self.guesses = 0.0

    def learn(self, job: Job, seconds: float) -> None:
        """A job took so long."""
        self.by_kind.setdefault(job.kind, []).append(seconds)
        self.seconds += seconds
        self.guesses += job.guess

    def of(self, job: Job) -> float:
        """Expected seconds, or the bare guess while nothing has finished."""
        known = self.by_kind.get(job.kind)
        if known:
            return sum(known) / len(known)
        return job.guess * (self.seconds / self.guesses if self.guesses else 1.0)

    def left(self, waiting: Sequence[Job], active: Sequence[Active], workers: int) -> float | None:
        """Seconds until everything is done, or ``None`` while nothing is known."""
        told = {id(a): seconds for a in active if (seconds := a.expected()) is not None}
        known = self
        if not self.guesses:  # nothing has finished: what is at work says how long things take
            known = Expectation()
            for one in active:
                if id(one) in told:
                    known.learn(one.job, told[id(one)] / (1.0 - one.share))
        if not known.guesses:
            return None
        rests = [max(0.0, told.get(id(a), known.of(a.job)) - (time.monotonic() - a.started)) for a in active]
        return max([(sum(rests) + sum(known.of(j) for j in waiting)) / workers, *rests])


def machine() -> dict[str, Any]:
    """What the jobs run on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {"platform": platform.platform(), "processor": processor, "cores": os.cpu_count() or 1}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, where signal handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def lock(folder: Path, name: str = ".lock") -> IO[bytes] | None:
    """The folder's lock, or ``None`` while another process has it. A child that inherits the file keeps the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("wb")
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written to: {error.strerror or error}.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def start(job: Job) -> Active | None:
    """Start a job, or return ``None`` where another process works in its folder or has finished it.

    The process is the leader of a session of its own, so that Ctrl-C reaches it once, from here, and not twice.
    """
    held = lock(job.folder)
    if held is None:
        return None
    if job.finished:
        held.close()
        return None
    root = str(Path(recdenoise.__file__).parents[1])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    before = (job.share(job.folder) if job.share is not None else None) or 0.0
    with held, (job.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(held.fileno(),),
            start_new_session=True,
        )
    return Active(job, process, time.monotonic(), now(), min(before, 1.0 - LEAST_SHARE))


def note(active: Active) -> float:
    """Add what is known from outside to the folder's ``job.json``; returns seconds over all attempts."""
    path = active.job.folder / "job.json"
    before = 0.0
    if path.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            before = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    seconds = before + time.monotonic() - active.started
    command = ["recdenoise", *active.job.arguments]
    record = {"command": command, "started": active.started_at, "ended": now(), "seconds": seconds}
    checkpoint.write_json(path, {**record, "machine": machine()})
    return seconds


def stop_all(active: Sequence[Active]) -> None:
    """Ask every process to save and stop; end those that do not."""
    for one in active:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for one in active:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        note(one)


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


Report = Callable[[Job | None, float, int, list[Job], float | None], None]
"""Told at every look: the job that just finished or ``None``, its seconds, jobs done, jobs at work, seconds left."""


def run_all(jobs: Sequence[Job], workers: int, report: Report) -> dict[str, str]:
    """Run every job that is not finished, ``workers`` at a time, turn by turn, the longest of a turn first.

    Args:
        jobs: finished ones are left alone.
        workers: processes at a time.
        report: told how it goes.

    Returns:
        Name of every job that failed, and the last line it wrote. The others were run all the same.

    Raises:
        KeyboardInterrupt: after the processes at work have saved what they can go on from.
    """
    expected, failed = Expectation(), dict[str, str]()
    waiting = []
    for job in jobs:
        if job.finished:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                seconds = json.loads((job.folder / "job.json").read_text(encoding="utf-8"))["seconds"]
                expected.learn(job, float(seconds))
        else:
            waiting.append(job)
    active: list[Active] = []
    n_done = len(jobs) - len(waiting)
    with terminate_like_interrupt():
        try:
            while waiting or active:
                waiting.sort(key=lambda job: (job.turn, -expected.of(job)))
                for job in [*waiting]:
                    if len(active) >= workers:
                        break
                    if (begun := start(job)) is not None:
                        active.append(begun)
                        waiting.remove(job)
                    elif job.finished:  # by another process
                        waiting.remove(job)
                        n_done += 1
                time.sleep(POLL_SECONDS)
                ended = [one for one in active if one.process.poll() is not None]
                active = [one for one in active if one not in ended]
                for one in ended:
                    seconds = note(one)
                    n_done += 1
                    if one.process.returncode == 0 and one.job.finished:
                        expected.learn(one.job, seconds)
                    else:
                        failed[one.job.name] = last_line(one.job.folder / "log.txt")
                    left = expected.left(waiting, active, workers)
                    report(one.job, seconds, n_done, [a.job for a in active], left)
                left = expected.left(waiting, active, workers)
                report(None, 0.0, n_done, [a.job for a in active], left)
        except BaseException:
            stop_all(active)
            raise
    return failed
