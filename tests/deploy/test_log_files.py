"""Logs have a bound, and whoever writes or follows one goes on."""

import subprocess
import sys

from meshgate_deploy import log_files, logs


def test_a_log_that_is_too_long_is_cut(tmp_path) -> None:
    """Its end is in the older file; a short one stays."""
    (tmp_path / "long.log").write_bytes(b"a" * 50 + b"b" * 100)
    (tmp_path / "short.log").write_bytes(b"c" * 100)
    assert log_files.bound(tmp_path, limit_bytes=100) == ["long.log"]
    assert (tmp_path / "long.log").read_bytes() == b""
    assert (tmp_path / "long.log.1").read_bytes() == b"b" * 100
    assert (tmp_path / "long.log.1").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "short.log").read_bytes() == b"c" * 100


def test_a_process_that_appends_goes_on_at_the_new_end(tmp_path) -> None:
    """No hole of zeros, no file that grows on unseen."""
    path = tmp_path / "loud.log"
    with path.open("ab") as log:
        code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
        loud = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, text=True, bufsize=1
        )
        for _ in range(3):
            while path.stat().st_size <= 1000:
                loud.stdin.write("x" * 99 + "\n")
            assert log_files.bound(tmp_path, limit_bytes=1000) == ["loud.log"]
        loud.stdin.close()
        assert loud.wait() == 0
    assert set(path.read_bytes()) <= set(b"x\n")
    assert (tmp_path / "loud.log.1").stat().st_size == 1000


def test_a_log_that_was_cut_is_followed_from_its_start(tmp_path, capsys) -> None:
    """`meshgate logs -f` misses nothing of the new lines."""
    path = tmp_path / "app.log"
    path.write_text("old line\n" * 10)
    offset = logs._print_new(path, 0)
    capsys.readouterr()
    path.write_text("new\n")
    assert logs._print_new(path, offset) == 4
    assert capsys.readouterr().out == "app  new\n"
