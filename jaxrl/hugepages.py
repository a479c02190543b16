"""Huge pages for the large blocks of this process, which its C library asks for only if told so at the start.

XLA:CPU takes the scratch memory of each update anew. In pages of 4 KiB, to be zeroed and looked up one by
one, that costs an eighth of the update (two cores, DrQ-v2 at batch 64: 254 ms, with huge pages 222; a world
model of 1m at 4x32: 237 and 207), and saves no memory. Linux mostly gives huge pages only on request
("madvise"), and glibc requests them where the environment had said so when the program began.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLES = "GLIBC_TUNABLES"
OURS = "glibc.malloc.hugetlb"
BEGUN = "JAXRL_BEGUN"  # the process that has begun anew already, should the other variable not come through


def changes(environment: Mapping[str, str], setting: pathlib.Path = SETTING) -> dict[str, str]:
    """Variables to begin this program anew with, none if it should go on as it is.

    That is where the environment says something of huge pages itself, where the kernel does not give them to
    those who ask and only to them, and under a debugger or profiler, which would be lost.
    """
    given = environment.get(TUNABLES, "")
    if OURS in given or environment.get(BEGUN) == str(os.getpid()) or sys.gettrace() or sys.getprofile():
        return {}
    try:
        if "[madvise]" not in setting.read_text():
            return {}
    except OSError:
        return {}
    return {TUNABLES: ":".join(x for x in (given, f"{OURS}=1") if x), BEGUN: str(os.getpid())}
