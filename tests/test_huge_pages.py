"""The program starts itself once more to get large pages, as it was called, and only once."""

import os
import subprocess
import sys

from jaxpretrain.huge_pages import SETTING, VARIABLE

SCRIPT = """
import os, sys
from jaxpretrain import huge_pages
print("begun")
huge_pages.ask()
print(sys.argv[1:], sys.flags.dev_mode, os.environ["GLIBC_TUNABLES"])
"""


def begun(**environment):
    own = {key: value for key, value in os.environ.items() if key != VARIABLE}
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", SCRIPT, "train", "--config=a b.py"],
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()


def test_it_starts_once_more_with_the_same_arguments():
    assert begun() == ["begun", "begun", f"['train', '--config=a b.py'] True {SETTING}"]


def test_it_starts_only_once_even_if_the_setting_gets_lost():
    lost = SCRIPT.replace(
        "huge_pages.ask()", 'os.environ.pop("GLIBC_TUNABLES", 0); huge_pages.ask()'
    )
    lost = lost.replace('os.environ["GLIBC_TUNABLES"]', '"lost"')
    done = subprocess.run(
        [sys.executable, "-c", lost],
        env={key: value for key, value in os.environ.items() if key != VARIABLE},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.splitlines() == ["begun", "begun", "[] False lost"]


def test_what_the_user_has_set_stays():
    assert begun(**{VARIABLE: "glibc.malloc.check=0"}) == [
        "begun",
        "['train', '--config=a b.py'] True glibc.malloc.check=0",
    ]
