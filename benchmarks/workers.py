"""Two programs that take turns: each in a process of its own, so that none is in the other's way.

The parent writes a line of JSON to a worker's standard input and reads one from its output; while
one works, the others wait. Only the standard library is used, so that a worker can run in another
environment than the parent.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

BOTH_HAVE = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Worker:
    """A program under `serve`, seen from the parent.

    Args:
        command: to start it.
        name: for messages.

    It has large pages if the C library gives them out: `jaxpretrain` asks for them, and a peer
    should be no worse off. On a GPU it takes the memory that it needs, not most of it at once.
    """

    def __init__(self, command: list[str], name: str):
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=BOTH_HAVE | os.environ,
        )

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            SystemExit: the worker ended without one; what it wrote about it is above.
        """
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"error: the side {self.name!r} ended with status {self._process.wait()}"
            )
        return json.loads(line)

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """Lets it end."""
        self._process.stdin.close()
        self._process.wait()


def serve(ready: dict[str, Any], answer: Callable[..., dict[str, Any]]) -> None:
    """What a worker does once it is ready: answers until its input ends.

    Args:
        ready: the first answer, unasked.
        answer: takes the keys of a question.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=out, flush=True)


def peak_host_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
