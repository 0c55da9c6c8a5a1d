"""A PATH on which the programs of a cluster are stand-ins that write down how they are called.

A stand-in is the named program: it appends its arguments to a file, a line for each call, and
answers as a table of the test says: the first pattern that the arguments contain, once per line.
"""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash") or "bash"

# Answers are in files ANSWERS/1, 2, …: pattern, exit status, text. Each is given once.
STAND_IN = f"""#!{BASH}
printf '%q ' "${{0##*/}}" "$@" >>"$CALLS"; echo >>"$CALLS"
case " $* " in *" -f - "*) cat >"$CALLS.stdin" ;; esac
for answer in "$ANSWERS"/*; do
  [ -f "$answer" ] || continue
  {{ IFS= read -r pattern; IFS= read -r status; text=$(cat); }} <"$answer"
  case "$*" in *"$pattern"*)
    rm "$answer"
    printf '%s\\n' "$text" >&$([ "$status" = 0 ] && echo 1 || echo 2)
    exit "$status" ;;
  esac
done
"""


class Cluster:
    """A PATH on which the programs of a cluster are stand-ins."""

    def __init__(self, folder: Path, *programs: str):
        self.folder, self.bin, self.answers = folder, folder / "bin", folder / "answers"
        self.bin.mkdir(parents=True)
        self.answers.mkdir()
        for program in programs:
            path = self.bin / program
            path.write_text(STAND_IN)
            path.chmod(0o755)

    def answer(self, pattern: str, text: str = "", status: int = 0) -> None:
        number = len(list(self.answers.glob("*")))
        (self.answers / f"{number:03}").write_text(f"{pattern}\n{status}\n{text}\n")

    def run(self, script: str, *arguments: str, **variables: str):
        return subprocess.run(
            [BASH, str(ROOT / script), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "CALLS": str(self.folder / "calls"),
                "ANSWERS": str(self.answers),
                "JAXPRETRAIN_POLL_SECONDS": "0",
                **variables,
            },
        )

    @property
    def calls(self) -> list[str]:
        """What was called, as typed."""
        path = self.folder / "calls"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
