"""A container's last words, and the watch that makes a rank end; each ending in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmd_worker import lastwords, watch


def test_the_first_cause_wins(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.touch()
    assert lastwords.write(path, "first\n  cause")
    assert not lastwords.write(path, "consequence")
    assert path.read_text() == "first cause\n"
    lastwords.clear(path)
    assert path.read_text() == ""
    assert lastwords.write(path, "another")


def test_of_many_at_the_same_time_one_is_written_whole(tmp_path: Path) -> None:
    path, wrote = tmp_path / "words", []
    threads = [threading.Thread(target=lambda n=n: wrote.append(lastwords.write(path, f"rank {n}"))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrote.count(True) == 1
    assert path.read_text() in {f"rank {n}\n" for n in range(16)}


def test_a_long_cause_is_cut_between_characters_below_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "words"
    lastwords.write(path, "é" * 5000)
    assert path.read_text() == "é" * 2047 + "\n"
    assert path.stat().st_size <= lastwords.LIMIT_BYTES


def test_words_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    assert not lastwords.write(None, "cause")
    assert not lastwords.write(tmp_path / "no" / "words", "cause")
    lastwords.clear(None)


BEGIN = """
import os, sys, threading, time
from pathlib import Path
from lmd_worker import logs
from lmd_worker.watch import Watch
logs.configure(3)
threading.Thread(target=time.sleep, args=(1000,)).start()  # an engine's thread keeps a process alive
watch = Watch(is_leader=True, last_words=Path(sys.argv[1]))
watch.start()
"""


@pytest.mark.parametrize(
    ("program", "status", "words", "line"),
    [
        pytest.param("", watch.EXIT_FRONTEND_GONE, "", "", id="a main thread that ends"),
        pytest.param(
            "watch.attend(lambda: 'The engine is dead.'); time.sleep(1000)",
            watch.EXIT_ENGINE_FAILED,
            "The engine is dead.\n",
            "ERROR rank=3 lmd_worker.watch: The engine is dead.\n",
            id="a failed engine",
        ),
        pytest.param(
            "watch.attend(lambda: None, lambda: 1 / 0); time.sleep(1000)",
            watch.EXIT_ENGINE_FAILED,
            "The watch of a rank failed: ZeroDivisionError; this is a fault of the worker.\n",
            "ERROR rank=3 lmd_worker.watch: The watch of a rank failed: ZeroDivisionError; this is a fault of the worker.\n",
            id="a fault of the watch",
        ),
    ],
)
def test_the_watch_ends_a_process_that_cannot_go_on(tmp_path: Path, program: str, status: int, words: str, line: str) -> None:
    path = tmp_path / "words"
    done = subprocess.run([sys.executable, "-c", BEGIN + program, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert (path.read_text() if path.exists() else "") == words
    assert done.stdout.endswith(line)


def test_the_watch_ends_a_process_whose_parent_is_gone(tmp_path: Path) -> None:
    child = BEGIN + "print('up', flush=True); time.sleep(1000)"
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}, 'x'], stdout=subprocess.PIPE); p.stdout.readline()"
    )
    # the grandchild holds our end of the pipe, so that reading to its end waits for it
    done = subprocess.run([sys.executable, "-c", parent], stderr=subprocess.PIPE, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0
