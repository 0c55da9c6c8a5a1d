"""Large pages for the memory of this process, where the C library gives them out.

A training step on a CPU takes its working memory anew each time, hundreds of megabytes of it. In
pages of 4 KB the kernel spends a sixth of the step on handing them out one by one; in pages of 2 MB
next to nothing.
"""

import contextlib
import os
import sys

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
ASKED = (
    "JAXPRETRAIN_ASKED_FOR_LARGE_PAGES"  # so that it is done once, whatever becomes of the other
)


def ask() -> None:
    """Starts this program anew with glibc told so, which it reads when a process begins.

    Does nothing where the variable is set already, whatever it says, or with another C library. (A
    glibc before 2.35 does not know the setting and passes over it.)
    """
    known = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
    if not known or not sys.executable or {VARIABLE, ASKED} & os.environ.keys():
        return
    os.environ |= {VARIABLE: SETTING, ASKED: "1"}
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
