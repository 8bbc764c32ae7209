"""What a run says and writes down: the log, one live line on a terminal, and files of JSON rows.

Every logger lives below "detkit". Only the main rank talks; the others stay silent, whatever they log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from detkit.distributed import is_main

ROOT = "detkit"
_CLEAR_LINE = "\r\x1b[K"


def get_logger(name: str = ROOT) -> logging.Logger:
    """Return the logger of a module; a name outside detkit (a project's) is put below it, so that it is heard too."""
    below = name == ROOT or name.startswith(f"{ROOT}.")
    return logging.getLogger(name if below else f"{ROOT}.{name}")


def setup_logging(run_dir: Path | str | None = None, stream: TextIO | None = None) -> None:
    """Send the log to the console and, with a `run_dir`, append it to `run_dir/log.txt`.

    The console gets INFO and above, short: the bare message, with the level where it is a warning or worse; the file
    has the time and the logger too. `stream` is standard output unless given. Call it as often as you like: each call
    replaces what the one before set up, so nothing is said twice.
    """
    logger = get_logger()
    for handler in [h for h in logger.handlers if getattr(h, "is_detkit", False)]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    _add(logger, ConsoleHandler(stream), _ShortFormatter())
    if run_dir is not None:
        file = logging.FileHandler(Path(run_dir) / "log.txt", encoding="utf-8", delay=True)
        _add(logger, file, logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def _add(logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.is_detkit = True  # type: ignore[attr-defined]
    handler.setFormatter(formatter)
    handler.addFilter(lambda record: is_main())  # asked per record: ranks are known only once the group is up
    logger.addHandler(handler)


class _ShortFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"


class ConsoleHandler(logging.Handler):
    """Writes log lines to the console and steps around a live line: lifts it, writes, puts it back."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._given = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; progress that a live line shows already is left out."""
        live = LiveLine.active
        if live and getattr(record, "is_progress", False):
            return
        stream = self._given or sys.stdout  # looked up now: notebooks and test runners exchange it
        try:
            if live:
                live.clear()
            stream.write(self.format(record) + "\n")
            stream.flush()
            if live:
                live.draw()
        except Exception:
            self.handleError(record)


class LiveLine:
    """Progress as one line that is overwritten in place on a terminal, and as plain log lines every so often.

    On a terminal the plain lines go to log.txt only; elsewhere (a pipe, a file, a batch job) they are what one sees.
    Use it as a context manager, or call `close` at the end. A rank that is not the main one shows nothing.
    """

    active: LiveLine | None = None  # the one that owns the terminal's last line, for ConsoleHandler

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        stream: TextIO | None = None,
        redraw_seconds: float = 0.1,
        log_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger or get_logger()
        self._stream = stream or sys.stdout
        self._clock = clock
        self._redraw_seconds, self._log_seconds = redraw_seconds, log_seconds
        self._drawn_at = self._logged_at = -math.inf
        self._text = self._logged_text = ""
        self.is_terminal = is_main() and self._stream.isatty()
        if self.is_terminal:
            LiveLine.active = self

    def update(self, text: str) -> None:
        """Show `text` (one line). Called as often as one likes; draws and logs no more often than it should."""
        self._text = " ".join(text.split("\n"))
        now = self._clock()
        if now - self._logged_at >= self._log_seconds:
            self._log(now)
        if now - self._drawn_at >= self._redraw_seconds:
            self._drawn_at = now
            self.draw()

    def draw(self) -> None:
        """Draw the current text over the terminal's last line, cut to its width; elsewhere do nothing."""
        if self.is_terminal and self._text:
            width = shutil.get_terminal_size().columns - 1  # a full line would make some terminals scroll
            self._stream.write(_CLEAR_LINE + self._text[: max(width, 1)])
            self._stream.flush()

    def clear(self) -> None:
        """Take the line off the terminal, so that something else may be written there."""
        if self.is_terminal:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()

    def close(self) -> None:
        """Log the last text if it was not logged, leave it on the terminal and go below it. Then nothing is shown."""
        if self._text != self._logged_text:
            self._log(self._clock())
        if LiveLine.active is self:
            self.draw()
            self._stream.write("\n" if self._text else "")
            self._stream.flush()
            LiveLine.active = None
        self._text = self._logged_text = ""

    def _log(self, now: float) -> None:
        self._logged_at, self._logged_text = now, self._text
        self._logger.info(self._text, extra={"is_progress": True})

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class JsonLines:
    """Appends rows to a file, one JSON object per line.

    A row reaches the operating system whole as soon as it is written (kill -9 loses at most the line being written),
    and the disk at `sync`. A half line that a killed run left at the end is cut off on opening.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        truncate_json_lines(self.path, keep=lambda row: True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - held open for the run, closed by close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row. A NaN or infinity, which JSON does not have, is a ValueError that names the file and the row.

        Undefined values are None. Of a row that the disk does not take (OSError) nothing stays in the file.
        """
        try:
            line = json.dumps(dict(row), allow_nan=False)
        except ValueError as error:
            raise ValueError(f"{self.path}: JSON cannot hold the row {dict(row)} ({error}); use None") from error
        rest, end = line.encode() + b"\n", os.fstat(self._file.fileno()).st_size
        with self._naming_the_file():
            try:
                while rest:  # a disk that fills up takes a part
                    rest = rest[self._file.write(rest) :]
            except OSError:
                os.ftruncate(self._file.fileno(), end)
                raise

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        with self._naming_the_file():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Sync and close the file. Further calls do nothing."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_json_lines(path: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a file; none where it does not exist. A half line at its end is left out.

    A broken line before the end is a ValueError that names the file and the line.
    """
    return [row for row, _ in _rows_and_ends(Path(path))]


def truncate_json_lines(path: Path | str, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Cut a file before the first row that `keep` refuses, and a half line at its end; return the rows cut.

    Bytes before the cut are untouched, so what is appended after a resume continues the very same file. A file that
    does not exist stays so.
    """
    path = Path(path)
    rows = list(_rows_and_ends(path))
    kept = next((i for i, (row, _) in enumerate(rows) if not keep(row)), len(rows))
    end = rows[kept - 1][1] if kept else 0
    if path.exists() and path.stat().st_size > end:
        os.truncate(path, end)
    return len(rows) - kept


def _rows_and_ends(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row with the offset of the byte after it."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    end = 0
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is None and number < len(lines):
            raise ValueError(f"{path}:{number}: not a JSON object: {line[:80]!r}. Remove the line, or the file.")
        if row is None:
            return
        end += len(line)
        yield row, end


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # JSON's and Unicode's errors are both one
        return None
    return row if isinstance(row, dict) else None


def format_duration(seconds: float) -> str:
    """Return a time span for people: '4.2 s', '45 s', '3:05', '1:02:03', '2 d 3:04:05'; '?' where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days} d {clock}" if days else clock
