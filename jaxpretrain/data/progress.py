"""How `prepare` shows what it does: a bar in a terminal, elsewhere a plain line now and then."""

import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows parts, documents and bytes of text that are done, on the standard error."""

    def __init__(self, *, shown: bool):
        self._shown = shown
        self._bar: tqdm | None = None
        self._done = self._total = self._documents = self._text_bytes = 0
        self._started = self._line_at = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Prints one line."""
        if self._shown:
            tqdm.write(f"prepare: {line}", file=sys.stderr)

    def begin(self, *, done: int, total: int) -> None:
        """Starts to count parts; `done` of `total` were there already."""
        self._done, self._total = done, total
        self._started = self._line_at = time.monotonic()
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="part", desc="prepare")

    def update(self, *, parts: int = 0, documents: int, text_bytes: int) -> None:
        """Shows `parts` more parts, and all documents and bytes of this run so far."""
        self._done += parts
        self._documents, self._text_bytes = documents, text_bytes
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(parts)
            self._bar.refresh()
        elif time.monotonic() - self._line_at > _SECONDS_BETWEEN_LINES:
            self._line()

    def end(self) -> None:
        """Ends the count."""
        if self._bar is None:
            self._line()
        self.__exit__()

    def _line(self) -> None:
        self._line_at = time.monotonic()
        self.say(f"{self._done:,}/{self._total:,} parts, {self._rate()}")

    def _rate(self) -> str:
        megabytes = self._text_bytes / 1e6
        rate = megabytes / max(time.monotonic() - self._started, 1e-3)
        return f"{self._documents:,} documents, {megabytes:,.1f} MB of text, {rate:.1f} MB/s"
