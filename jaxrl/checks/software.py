"""Python and packages: what is installed, against what this program and its dependencies ask for."""

import pathlib
import platform
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from jaxrl import runtime
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish, plural

TOLD = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "envpool", "mujoco", "mujoco-mjx", "numpy")
PLUGIN = re.compile(r"jax-((?:cuda|rocm)\d*)-(plugin|pjrt)|libtpu")


def python(wish: Wish) -> Iterator[Finding]:
    """The interpreter."""
    del wish
    version, wanted = platform.python_version(), project()[0]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield Finding(OK, "python", f"{version} ({platform.system()}, {platform.machine()})")
    else:
        remedy = "uv venv --python 3.13 .venv && uv pip install jaxrl (or Python 3.13 from python.org)"
        yield Finding(FAULT, "python", f"{version}, but jaxrl needs {wanted}", remedy)


def packages(wish: Wish) -> Iterator[Finding]:
    """Every package that is needed, and those that these need, in a version that all of them accept."""
    del wish
    needed = project()[1]
    direct = broken(x for x in needed if applies(x, ""))
    optional = [x for x in needed if "extra ==" in str(x.marker or "")]
    wrong_extras = [x for x in broken(optional) if x[1]]
    deep, count = below(x for x in needed if applies(x, ""))
    jaxlib = [x for x in deep if canonicalize_name(x[0].name) == "jaxlib"]
    if faults := direct + jaxlib:
        yield Finding(FAULT, "packages", clashes(faults), install(faults))
    if warnings := wrong_extras + [x for x in deep if x not in jaxlib]:
        yield Finding(WARN, "packages", clashes(warnings), install(warnings))
    if not faults and not warnings:
        told = ", ".join(f"{name} {version}" for name in TOLD if (version := installed(name)))
        yield Finding(OK, "packages", f"{plural(count, 'package')} fit together: {told}")


def accelerators(wish: Wish) -> Iterator[Finding]:
    """The packages that let jax use a GPU or TPU."""
    del wish
    there = plugins()
    problems = list(plugin_problems(there))
    yield from problems
    if not problems:
        told = ", ".join(f"{name} {version}" for name, version in sorted(there.items()))
        none = "no package for a GPU or TPU (for an NVIDIA card: pip install 'jax[cuda13]')"
        yield Finding(OK, "accelerators", told or none)


def plugin_problems(there: dict[str, str]) -> Iterator[Finding]:
    """What is wrong with these plugins {name: version}; jax passes over those of another version."""
    jax, allowed = installed("jax"), of_jax()
    for name, version in there.items():
        of_pair = name.replace("-pjrt", "-plugin")  # they come in pairs, of which jax names this one
        extra = "tpu" if name == "libtpu" else of_pair.split("-")[1]
        wanted = allowed.get(of_pair)
        if wanted is None:
            found = f"{name} {version}: jax {jax} has no use for it"
            remedy = f"pip uninstall -y {name} && pip install -U 'jax[cuda13]=={jax}'"
            yield Finding(FAULT, "accelerators", found, remedy)
        elif not wanted.contains(version, prereleases=True):
            found = f"{name} {version}: jax {jax} needs {wanted} and will not use it"
            yield Finding(FAULT, "accelerators", found, f"pip install -U 'jax[{extra}]=={jax}'")
    kinds = sorted({name.split("-")[1] for name in there if name != "libtpu"})
    if len(kinds) > 1:
        found = f"packages for {' and '.join(kinds)} are installed, which get in each other's way"
        gone = " ".join(name for name in sorted(there) if f"-{kinds[0]}-" in name)
        yield Finding(WARN, "accelerators", found, f"pip uninstall -y {gone}")
    path = runtime.variable("LD_LIBRARY_PATH") or ""
    if kinds and "cuda" in path.lower():
        found = f"LD_LIBRARY_PATH={path} puts another CUDA before the one that came with jax"
        yield Finding(WARN, "accelerators", found, "unset LD_LIBRARY_PATH")


def plugins() -> dict[str, str]:
    """{name: version} of what makes accelerators known to jax."""
    there = {canonicalize_name(x.name or ""): x.version for x in metadata.distributions()}
    return {name: version for name, version in there.items() if PLUGIN.fullmatch(name)}


def project() -> tuple[str, list[Requirement]]:
    """Python versions and packages that are asked for: by pyproject.toml in a checkout, else as installed.

    An editable install remembers the packages of the day it was made; the checkout knows those of today.
    """
    file = pathlib.Path(__file__).resolve().parents[2] / "pyproject.toml"
    asked = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    if asked.get("name") != "jaxrl":  # of whatever else lies where jaxrl is installed
        python = metadata.metadata("jaxrl")["Requires-Python"] or ">=3.11"
        return python, [Requirement(line) for line in metadata.requires("jaxrl") or []]
    lines = [*asked["dependencies"]]
    for extra, names in asked.get("optional-dependencies", {}).items():
        lines += [f'{name} ; extra == "{extra}"' for name in names]
    return asked["requires-python"], [Requirement(line) for line in lines]


def installed(*names: str) -> str:
    """The version of the first of these packages that is there; "" if none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


Clash = tuple[Requirement, str, str]  # what is asked for, the version that is there or "", who asks


def broken(needed: Iterable[Requirement], who: str = "jaxrl") -> list[Clash]:
    """Requirements that do not hold."""
    there = [(x, installed(x.name)) for x in needed]
    return [(x, v, who) for x, v in there if not v or not x.specifier.contains(v, prereleases=True)]


def applies(need: Requirement, extra: str) -> bool:
    """Whether it is asked for on this machine, with or without an extra."""
    return need.marker is None or need.marker.evaluate({"extra": extra})


def below(needed: Iterable[Requirement]) -> tuple[list[Clash], int]:
    """What does not hold among the packages that packages ask for, and how many there are in all."""
    clashing, seen, todo = [], set(), list(needed)
    while todo:
        need = todo.pop()
        key = canonicalize_name(need.name), frozenset(need.extras)
        if key in seen or not installed(need.name):
            continue
        seen.add(key)
        asked = [Requirement(line) for line in metadata.requires(need.name) or []]
        asked = [x for x in asked if any(applies(x, extra) for extra in ("", *need.extras))]
        clashing += broken(asked, need.name)
        todo += asked
    return clashing, len({name for name, _ in seen})


def of_jax() -> dict[str, SpecifierSet]:
    """Versions of its plugins that the installed jax asks for, by name."""
    asked = [Requirement(line) for line in metadata.requires("jax") or []]
    return {name: x.specifier for x in asked if PLUGIN.fullmatch(name := canonicalize_name(x.name))}


def clashes(found: Iterable[Clash]) -> str:
    """In words: "flax 0.9 (jaxrl needs >=0.12)"."""
    words = [
        f"{x.name} {v or 'is missing'} ({who} needs {x.specifier or 'it'})" for x, v, who in unique(found)
    ]
    return ", ".join(words)


def install(found: Iterable[Clash]) -> str:
    return "pip install " + " ".join(f"'{x.name}{x.specifier}'" for x, _, _ in unique(found))


def unique(found: Iterable[Clash]) -> list[Clash]:
    """Of several who ask for the same, the first."""
    firsts: dict[tuple[str, str], Clash] = {}
    for clash in found:
        firsts.setdefault((canonicalize_name(clash[0].name), str(clash[0].specifier)), clash)
    return list(firsts.values())
