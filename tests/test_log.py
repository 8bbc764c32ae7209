from __future__ import annotations

import io
import json
import logging
import math
import os
import re

import pytest

from detkit import log
from detkit.log import (
    JsonLines,
    LiveLine,
    format_duration,
    get_logger,
    read_json_lines,
    setup_logging,
    truncate_json_lines,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True

    def screen(self):
        """Return the lines as a terminal shows them: a return and an erase start the line anew."""
        return [line.split("\r\x1b[K")[-1] for line in self.getvalue().split("\n")]


@pytest.fixture(autouse=True)
def _loggers_as_before():
    logger = get_logger()
    level, handlers = logger.level, list(logger.handlers)
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    LiveLine.active = None


@pytest.fixture
def clock():
    """A clock that stands still until one sets its `now`."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


# ---------------------------------------------------------------------------------------------------------------------
# Logging
# ---------------------------------------------------------------------------------------------------------------------


def test_console_is_short_and_the_file_has_the_time(tmp_path):
    console = io.StringIO()
    setup_logging(tmp_path, console)
    get_logger("detkit.engine").info("hello %d", 1)
    get_logger("detkit").warning("careful")
    get_logger("detkit").debug("never")
    assert console.getvalue() == "hello 1\nWARNING: careful\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO detkit\.engine: hello 1", lines[0])
    assert len(lines) == 2


def test_setting_up_again_replaces(tmp_path):
    console = io.StringIO()
    for folder in ("a", "b", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        setup_logging(tmp_path / folder, console)
    get_logger().info("once")
    assert console.getvalue() == "once\n"
    assert not (tmp_path / "a" / "log.txt").exists()
    assert len((tmp_path / "b" / "log.txt").read_text().splitlines()) == 1
    setup_logging(None, console)
    get_logger().info("twice")
    assert len((tmp_path / "b" / "log.txt").read_text().splitlines()) == 1


def test_a_later_run_appends_to_the_log(tmp_path):
    for _ in range(2):
        setup_logging(tmp_path, io.StringIO())
        get_logger().info("line")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_other_ranks_are_silent(tmp_path, monkeypatch):
    console = Terminal()
    setup_logging(tmp_path, console)
    monkeypatch.setattr(log, "is_main", lambda: False)
    get_logger().error("rank 1 speaks")
    with LiveLine(stream=console) as live:
        live.update("rank 1 progresses")
    assert console.getvalue() == ""
    assert not (tmp_path / "log.txt").exists()


def test_standard_output_is_looked_up_when_written(capsys):
    setup_logging()
    get_logger().info("seen")
    assert capsys.readouterr().out == "seen\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("detkit", "detkit"),
        ("detkit.data.coco", "detkit.data.coco"),
        ("my_project.loss", "detkit.my_project.loss"),
        ("detkitten", "detkit.detkitten"),
    ],
)
def test_every_logger_is_below_detkit(name, expected):
    assert get_logger(name).name == expected


def test_an_exception_is_logged_with_its_trace(tmp_path):
    setup_logging(tmp_path, io.StringIO())
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger().exception("stopped")
    assert "ValueError: broken" in (tmp_path / "log.txt").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# The live line
# ---------------------------------------------------------------------------------------------------------------------


def test_on_a_terminal_there_is_one_line(tmp_path, clock):
    terminal = Terminal()
    setup_logging(tmp_path, terminal)
    with LiveLine(stream=terminal, clock=clock, log_seconds=30) as live:
        for i in range(5):
            clock.now += 1
            live.update(f"step {i}")
        assert terminal.screen() == ["step 4"]
    assert terminal.screen() == ["step 4", ""]
    # The file has the first line, and the last at the end; the terminal never saw them as log lines.
    assert [line.split(": ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["step 0", "step 4"]


def test_log_lines_stand_above_the_live_line(clock):
    terminal = Terminal()
    setup_logging(None, terminal)
    with LiveLine(stream=terminal, clock=clock) as live:
        live.update("step 1")
        get_logger().info("saved")
        assert terminal.screen() == ["saved", "step 1"]
        clock.now += 1
        live.update("2")
        assert terminal.screen() == ["saved", "2"]
    get_logger().info("done")
    assert terminal.screen() == ["saved", "2", "done", ""]


def test_drawing_is_not_more_often_than_asked(clock):
    terminal = Terminal()
    with LiveLine(stream=terminal, clock=clock, redraw_seconds=1.0) as live:
        for _ in range(10):
            live.update("x")
        assert terminal.getvalue().count("x") == 1
        clock.now += 1.5
        live.update("y")
        assert terminal.screen() == ["y"]


def test_a_long_text_is_cut_to_the_terminal(monkeypatch, clock):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    with LiveLine(stream=terminal, clock=clock) as live:
        live.update("0123456789" * 9 + "\nmore")
        assert terminal.screen() == ["0123456789012345678"]


def test_off_a_terminal_there_are_plain_lines_now_and_then(tmp_path, clock):
    console = io.StringIO()
    setup_logging(tmp_path, console)
    with LiveLine(stream=console, clock=clock, log_seconds=30) as live:
        for second in range(100):
            clock.now = float(second)
            live.update(f"step {second}")
    assert console.getvalue().splitlines() == ["step 0", "step 30", "step 60", "step 90", "step 99"]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 5


def test_closing_without_text_or_twice(clock):
    terminal = Terminal()
    setup_logging(None, terminal)
    live = LiveLine(stream=terminal, clock=clock)
    live.close()
    live.close()
    assert terminal.getvalue() == ""
    get_logger().info("plain")
    assert terminal.getvalue() == "plain\n"


def test_an_error_leaves_the_last_state_on_the_screen(clock):
    terminal = Terminal()

    def run():
        with LiveLine(stream=terminal, clock=clock) as live:
            live.update("step 7")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert terminal.screen() == ["step 7", ""]


# ---------------------------------------------------------------------------------------------------------------------
# Files of JSON rows
# ---------------------------------------------------------------------------------------------------------------------

ROWS = [{"iteration": 1, "loss_cls": 0.1}, {"iteration": 2, "loss_cls": 1e-30}, {"iteration": 2, "bbox/AP": None}]


@pytest.fixture
def written(tmp_path):
    with JsonLines(tmp_path / "metrics.jsonl") as file:
        for row in ROWS:
            file.write(row)
        file.sync()
    return tmp_path / "metrics.jsonl"


def test_what_is_written_is_read(written):
    assert read_json_lines(written) == ROWS
    assert [json.loads(line) for line in written.read_text().splitlines()] == ROWS


def test_opening_again_appends(written):
    with JsonLines(written) as file:
        file.write({"iteration": 3})
        assert read_json_lines(written) == [*ROWS, {"iteration": 3}]  # seen before close: nothing waits in a buffer
    file.close()


def test_every_cut_of_the_file_is_read_up_to_its_last_whole_line(written):
    content = written.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == 10)]
    for size in range(len(content) + 1):
        written.write_bytes(content[:size])
        whole = sum(end <= size for end in ends) - 1
        assert read_json_lines(written) == ROWS[:whole]
        with JsonLines(written) as file:
            file.write({"new": True})
        assert read_json_lines(written) == [*ROWS[:whole], {"new": True}]


@pytest.mark.parametrize("tail", [b"\x00\x00\x00\n", b'{"a": \n', b"3\n", b"\xff\xfe\n", b"\n"])
def test_a_broken_last_line_is_left_out(written, tail):
    content = written.read_bytes()
    written.write_bytes(content + tail)
    assert read_json_lines(written) == ROWS
    JsonLines(written).close()
    assert written.read_bytes() == content


def test_a_broken_line_before_the_end_is_named(written):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(lines[0] + b"<<<\n" + lines[1])
    for use in (read_json_lines, JsonLines):
        with pytest.raises(ValueError, match=rf"{re.escape(str(written))}:2: not a JSON object"):
            use(written)


def test_truncate_keeps_the_bytes_before_the_cut(written):
    content = written.read_bytes()
    assert truncate_json_lines(written, keep=lambda row: row["iteration"] <= 2) == 0
    assert written.read_bytes() == content
    assert truncate_json_lines(written, keep=lambda row: row["iteration"] <= 1) == 2
    assert written.read_bytes() == content.splitlines(keepends=True)[0]
    assert truncate_json_lines(written, keep=lambda row: False) == 1
    assert written.read_bytes() == b""


def test_a_file_that_is_not_there(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []
    assert truncate_json_lines(tmp_path / "none.jsonl", keep=lambda row: False) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_and_leave_no_trace(written, value):
    content = written.read_bytes()
    with JsonLines(written) as file, pytest.raises(ValueError, match=r"metrics\.jsonl.*loss_cls.*None"):
        file.write({"iteration": 3, "loss_cls": value})
    assert written.read_bytes() == content


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (185, "3:05"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (86400, "1 d 0:00:00"),
        (200000, "2 d 7:33:20"),
        (math.inf, "?"),
        (math.nan, "?"),
        (-1, "?"),
    ],
)
def test_format_duration(seconds, expected):
    assert format_duration(seconds) == expected


def test_the_root_logger_is_left_alone(tmp_path):
    before = list(logging.getLogger().handlers)
    setup_logging(tmp_path, io.StringIO())
    assert logging.getLogger().handlers == before


def test_of_a_row_that_the_disk_does_not_take_nothing_stays(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as rows:
        rows.write({"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            with pytest.raises(OSError, match=r"rows\.jsonl"):
                rows.write({"b": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        rows.write({"c": 3})
    assert read_json_lines(path) == [{"a": 1}, {"c": 3}]
