"""Huge pages for the large blocks of this process, which its C library asks for only if told so at the start.

XLA:CPU takes the scratch memory of each update anew. In pages of 4 KiB, to be zeroed and looked up one by
one, that costs an eighth of the update (two cores, DrQ-v2 at batch 64: 254 ms, with huge pages 222; a world
model of 1m at 4x32: 237 and 207), and saves no memory. Linux mostly gives huge pages only on request
("madvise"), and glibc requests them where the environment had said so when the program began.
"""

import pathlib

SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLES = "GLIBC_TUNABLES"  # the variable
OURS = "glibc.malloc.hugetlb"


def tunables(given: str, setting: pathlib.Path = SETTING) -> str:
    """What GLIBC_TUNABLES should be instead of what it is, "" if nothing else.

    That is where it says something of huge pages itself, and where the kernel does not give them to those who
    ask and only to them.
    """
    try:
        on_request = "[madvise]" in setting.read_text()
    except OSError:
        return ""
    if not on_request or OURS in given:
        return ""
    return ":".join(x for x in (given, f"{OURS}=1") if x)
