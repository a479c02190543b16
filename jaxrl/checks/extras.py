"""What is optional: videos, Weights & Biases."""

import contextlib
import netrc
import pathlib
import urllib.parse
from collections.abc import Iterator

from jaxrl import runtime
from jaxrl.checks import software
from jaxrl.checks.child import ask
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish

HOST = "api.wandb.ai"
MODES = ("online", "offline", "disabled", "dryrun", "run", "shared", "")
SHORTEST_KEY = 40  # characters; wandb refuses shorter ones


def video(wish: Wish) -> Iterator[Finding]:
    """Writes one, as --video would."""
    del wish
    answer = ask("video")
    if error := answer.error("write"):
        remedy = "pip install -U --force-reinstall pillow 'jaxrl[video]'"
        yield Finding(FAULT, "video", f"no video can be written: {error}", remedy)
        return
    facts = answer.stages["write"]
    note = f" ({facts['why']})" if facts["why"] else " (H.264)"
    yield Finding(OK, "video", facts["form"] + note)


def wandb(wish: Wish) -> Iterator[Finding]:
    """Whether it could be used. The key itself is never told."""
    del wish
    version, mode = software.installed("wandb"), (runtime.variable("WANDB_MODE") or "").lower()
    problem = key_problem()
    if not version:
        yield Finding(OK, "wandb", "not installed (pip install 'jaxrl[wandb]'); nothing else needs it")
    elif mode not in MODES:
        yield Finding(WARN, "wandb", f"{version}; WANDB_MODE={mode[:40]}: unknown", "unset WANDB_MODE")
    elif mode in ("offline", "dryrun", "disabled"):
        yield Finding(OK, "wandb", f"{version}; WANDB_MODE={mode}, so nothing is sent")
    elif problem:
        what, remedy = problem
        yield Finding(WARN, "wandb", f"{version}; {what}", f"{remedy}; or train with --wandb.mode=offline")
    else:
        yield Finding(OK, "wandb", f"{version}; a key for {host()} is there")


def key_problem() -> tuple[str, str] | None:
    """(what is wrong with the key for the server, remedy); None if there is one. Never the key."""
    key = runtime.variable("WANDB_API_KEY")
    if key:
        if len(key) < SHORTEST_KEY or key != key.strip() or not key.isprintable():
            what = f"WANDB_API_KEY is no key (it has {len(key)} characters, a key has {SHORTEST_KEY} or more)"
            return what, "unset WANDB_API_KEY && wandb login"
        return None
    if "WANDB_API_KEY" in runtime.environment({}):
        return "WANDB_API_KEY is empty", "unset WANDB_API_KEY && wandb login"
    file = netrc_file()
    try:
        found = netrc.netrc(str(file)).authenticators(host()) if file.is_file() else None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):  # its words may hold the password
        return f"{file} cannot be read", f"mend or move {file}, then wandb login"
    return None if found else (f"not logged in to {host()}", "wandb login")


def netrc_file() -> pathlib.Path:
    return pathlib.Path(runtime.variable("NETRC") or "~/.netrc").expanduser()


def host() -> str:
    """The server, without what a URL may hold beside it."""
    name = None
    with contextlib.suppress(ValueError):
        name = urllib.parse.urlsplit(runtime.variable("WANDB_BASE_URL") or "").hostname
    return name or HOST
