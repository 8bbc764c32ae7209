"""`detkit` itself: help, version, and what is no command."""

import subprocess
import sys

import pytest
import torch

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


def test_ctrl_c_ends_in_one_line_also_where_a_save_made_another_error_of_it(tmp_path, capsys):
    class Interrupted:
        def write(self, data):
            raise KeyboardInterrupt

        def flush(self):
            raise KeyboardInterrupt

    def save():
        torch.save({"a": torch.ones(3)}, Interrupted())

    def press():
        raise KeyboardInterrupt

    for work in (press, save):
        assert status_of(work) == 130
        assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: 1 // 0)
