"""`detkit` itself: help, version, and what is no command."""

import os
import signal
import subprocess
import sys

import pytest

from detkit import __version__
from detkit.cli import main
from detkit.cli.status import status_of


def test_help_names_every_command_with_a_word_on_it(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *("train", "sweep", "figures", "analyze", "weights", "convert", "zoo", "env")
    ]
    assert all(len(line.split()) > 3 for line in lines)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"detkit {__version__}\n"


@pytest.mark.parametrize(("words", "said"), [(["trian"], "no command 'trian'; did you mean 'train'?"), ([], "usage:")])
def test_what_is_no_command(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/a"), "error: runs/a: No space left on device"),
        (PermissionError(13, "Permission denied", "runs"), "error: runs: Permission denied"),
    ],
)
def test_a_disk_that_is_full_or_not_ones_own_is_one_message(error, said, capsys):
    def fail():
        raise error

    assert status_of(fail) == 2
    assert capsys.readouterr().err.strip() == said


def test_an_error_of_the_program_stays_one():
    def fail():
        raise FileNotFoundError(2, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        status_of(fail)


def test_a_reader_that_has_read_enough_is_no_error():
    script = "from detkit.cli.status import status_of; status_of(lambda: [print('x' * 999) for _ in range(9999)] and 0)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_another_broken_pipe_is_an_error():
    def fail():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        status_of(fail)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no death by a signal")
def test_ctrl_c_is_one_line_and_the_death_that_a_shell_looks_for():
    script = "import os, signal; from detkit.cli import run; run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "interrupted\n")
    result = subprocess.run([sys.executable, "-c", script.replace("os.kill(os.getpid(), signal.SIGINT)", "1 // 0")],
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
