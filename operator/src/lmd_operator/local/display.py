"""What a person sees of a local run: facts as lines, progress as one line that changes, the answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.status import Status


class Display:
    """Writes to a console; without a terminal, progress becomes lines too, each said once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._last = ""

    def phase(self, words: str) -> None:
        """Say something that stays true."""
        self.end_progress()
        self._print(words)

    def progress(self, words: str) -> None:
        """Say what is happening now."""
        if words == self._last:
            return
        self._last = words
        if not self._console.is_terminal:
            self._print(f"... {words}")
        elif self._status is None:
            self._status = self._console.status(words)
            self._status.start()
        else:
            self._status.update(words)

    def answer(self, question: str, pieces: Iterator[str]) -> None:
        """Show a question and its answer while it is generated."""
        self._print(f"question: {question}")
        self._console.print("answer: ", end="", markup=False, highlight=False)
        for piece in pieces:
            self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            self._console.file.flush()
        self._console.print()

    def end_progress(self) -> None:
        """Take the changing line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()
