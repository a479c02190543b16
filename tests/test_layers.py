"""The shape of the code, held by reading it: who imports whom, where packages live, how long things are.

A new file of jaxrl/ needs a place in ROOMS; everything else here follows from the tree.
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("jaxrl", "configs") for path in (ROOT / folder).rglob("*.py"))
SHORT = sorted([*SOURCES, *(ROOT / "benchmarks").rglob("*.py")])

# From the ground up. A room imports itself and the floors below it.
ROOMS = (
    ("__init__", "types", "schema", "looks", "config", "changes", "exits", "glossary", "hugepages"),
    ("ops", "schedule", "metrics", "runtime", "layout", "keys", "tracker", "stopwatch", "faults", "hosts")
    + ("aggregate", "charts", "profiling", "demand"),
    ("nets", "envs"),
    ("learners", "feeds"),
    ("parts", "placement", "sources", "axis", "chunk", "programs", "members", "state", "plan"),
    ("evaluation", "checkpoint", "manifest", "stores", "sinks", "rundir", "saving", "saver", "start", "nans")
    + ("actor", "filming", "videos", "reading", "dreams", "samples"),
    ("loop", "lockstep", "abreast", "collect", "onboard", "assembly", "telling", "memory", "rehearsal")
    + ("flags", "commands", "joint"),
    ("session", "siblings", "roster", "population", "supervise", "measuring", "trial", "inference", "checks"),
    ("train", "evaluate", "report", "runs", "doctor"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
ENTRIES = ROOMS[-1]
# Neighbours on one floor may see each other, but for these, which must stay exchangeable.
STRANGERS = [
    {"nets", "envs"},
    {"learners", "feeds"},
    {"types", "config"},
    {"types", "schema"},
    {"exits", "config"},
]
# What the package's face may import, and that only in functions: `import jaxrl` must stay free of jax.
FACE = {"config", "inference", "runtime"}
FORBIDDEN = {
    "learners": {"envs"},
    "flags": set(FLOOR) - {"flags", "config", "looks", "changes", "schema", "__init__"},
}

# Third-party packages and process-wide settings, and the one room that may touch them.
HOMES = {
    "absl.flags": "flags",
    "orbax": "checkpoint",
    "tensorstore": "checkpoint",
    "flax.linen": "nets",
    "optax": "learners",
    "envpool": "envs",
    "mujoco": "envs",
    "tensorboardX": "sinks",
    "wandb": "sinks",
    "matplotlib": "charts",
    "packaging": "checks",
    "rich": "sinks",
    "PIL": "videos",
    "av": "videos",
    "jax.config": "runtime",
    "jax.profiler": "profiling",
    "jax.distributed": "runtime",
    "os.environ": "runtime",
    "os.getenv": "runtime",
    "os.putenv": "runtime",
}
UNSAFE = ("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "os.system", "os.popen", "builtins")
UNSAFE += ("subprocess.getoutput", "subprocess.getstatusoutput", "numpy.DataSource")
UNSAFE += ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
UNSAFE_CALLS = ("eval", "exec", "compile", "__import__")
BANNED_NAMES = {"data", "info", "tmp", "rng", "x2", "helper", "helpers", "utils", "misc", "manager"}


def room_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "jaxrl" else "configs"


def trees(paths: list[pathlib.Path] = SOURCES) -> Iterator[tuple[str, str, ast.Module]]:
    """(path relative to the repository, room, syntax tree) of each file."""
    for path in paths:
        yield str(path.relative_to(ROOT)), room_of(path), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of whatever is imported; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = pathlib.PurePath(path).parts[:-1]
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{name.name}") for name in node.names)


def aliases(tree: ast.Module, path: str) -> dict[str, str]:
    """{name in the file: dotted name that it was imported as}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                n.asname or n.name.partition(".")[0]: n.name if n.asname else n.name.partition(".")[0]
                for n in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return found


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """`os.environ` of the expression os.environ, through aliases; "" if it is no such chain."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in known:
        return ""
    return ".".join([known[node.id], *reversed(parts)])


def uses(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import and of every attribute of something imported."""
    yield from imports(tree, path)
    known = aliases(tree, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node, known)):
            yield node.lineno, name


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def none_of(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def import_faults(path: str, room: str, tree: ast.Module) -> list[str]:
    faults = []
    late = {line for f in functions(tree) for line in range(f.lineno, (f.end_lineno or 0) + 1)}
    for line, name in imports(tree, path):
        if not within(name, "jaxrl"):
            continue
        target = [*name.split("."), "__init__"][1]
        target = "__init__" if target == "__version__" else target
        if room == "configs":
            bad = target != "config"
        elif target not in FLOOR:
            bad = True
        elif target == room:
            bad = False
        elif room == "__init__":
            bad = line not in late or target not in FACE
        else:
            bad = (
                FLOOR[target] > FLOOR[room]
                or {room, target} in STRANGERS
                or target in FORBIDDEN.get(room, ())
                or target in ENTRIES
            )
        if bad:
            faults.append(f"{path}:{line}: {room} may not import {name}")
    return faults


def test_every_file_has_a_room():
    none_of(
        [
            f"{path}: {room} is in no room; give it a floor in ROOMS"
            for path, room, _ in trees()
            if room not in {*FLOOR, "configs"}
        ]
    )


def test_imports_point_downwards():
    none_of(
        [
            fault
            for path, room, tree in trees()
            if room in {*FLOOR, "configs"}
            for fault in import_faults(path, room, tree)
        ]
    )


def test_no_module_imports_itself_through_others():
    names = {
        str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p
        for p in SOURCES
    }
    edges = {}
    for module, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        found = {name for _, name in imports(top, str(path.relative_to(ROOT)))}
        targets = {name if name in names else name.rpartition(".")[0] for name in found}
        edges[module] = (targets & set(names)) - {module}
    while leaves := [module for module, targets in edges.items() if not targets & set(edges)]:
        for module in leaves:
            del edges[module]
    none_of([f"{module} is in a circle with {targets & set(edges)}" for module, targets in edges.items()])


def home_faults(path: str, room: str, tree: ast.Module) -> list[str]:
    found = {(line, home) for line, name in uses(tree, path) for home in HOMES if within(name, home)}
    return [
        f"{path}:{line}: {home} belongs to {HOMES[home]}"
        for line, home in sorted(found)
        if room != HOMES[home]
    ]


def test_packages_have_one_home():
    none_of([fault for path, room, tree in trees() for fault in home_faults(path, room, tree)])


def unsafe_faults(path: str, tree: ast.Module) -> list[str]:
    faults = [
        f"{path}:{line}: {name}" for line, name in uses(tree, path) if any(within(name, u) for u in UNSAFE)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
            faults.append(f"{path}:{node.lineno}: {node.func.id}()")
        for keyword in node.keywords:
            false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("shell", "allow_pickle") and not false:
                faults.append(f"{path}:{node.lineno}: {keyword.arg} may be true")
    return faults


def test_nothing_executes_what_it_reads():
    none_of([fault for path, _, tree in trees() for fault in unsafe_faults(path, tree)])


def test_only_sinks_and_entries_print():
    none_of(
        [
            f"{path}:{node.lineno}: print()"
            for path, room, tree in trees()
            if room not in ("sinks", "commands", *ENTRIES)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    )


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in SHORT])
def test_files_are_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 400


def test_functions_are_short_and_take_few_arguments():
    faults = []
    for path, _, tree in trees():
        for node in functions(tree):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > (80 if "loss" in f"{path} {node.name}" else 60):  # a loss is read beside its formula
                faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            if len(names) > 6:
                faults.append(
                    f"{path}:{node.lineno}: {node.name} takes {len(names)} arguments; make a struct"
                )
    none_of(faults)


def state_faults(path: str, tree: ast.Module) -> list[str]:
    """Module-level containers that are no constants, constants that are changed, `global`."""
    containers, faults = set(), []
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        mutable = isinstance(
            node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
        )
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            mutable |= node.value.func.id in ("list", "dict", "set", "defaultdict", "deque", "Counter")
        for target in targets:
            if mutable and isinstance(target, ast.Name):
                containers.add(target.id)
                if not target.id.lstrip("_").isupper() and target.id != "__all__":
                    faults.append(
                        f"{path}:{node.lineno}: {target.id} is mutable; name a constant in capitals"
                    )
    changing = {
        "append",
        "extend",
        "insert",
        "update",
        "setdefault",
        "pop",
        "clear",
        "add",
        "remove",
        "discard",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            faults.append(f"{path}:{node.lineno}: global {', '.join(node.names)}")
        owner = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
            owner = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
        if isinstance(owner, ast.Name) and owner.id in containers:
            faults.append(f"{path}:{owner.lineno}: {owner.id} is changed")
    return faults


def test_modules_hold_no_state():
    none_of([fault for path, _, tree in trees() for fault in state_faults(path, tree)])


def name_faults(path: str, tree: ast.Module) -> list[str]:
    """Banned words as names of files, functions, arguments and variables; fields and keywords are free."""
    faults = (
        [f"{path}: is named {pathlib.PurePath(path).stem}"]
        if pathlib.PurePath(path).stem in BANNED_NAMES
        else []
    )
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        if name in BANNED_NAMES and isinstance(node, ast.Name | ast.arg | ast.FunctionDef | ast.ClassDef):
            faults.append(f"{path}:{node.lineno}: {name} says nothing")
    return faults


def fields(tree: ast.Module) -> set[int]:
    """Lines of annotated fields of classes, which may carry the names that an interface prescribes."""
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {node.lineno for body in bodies for node in body if isinstance(node, ast.AnnAssign)}


def test_names_say_something():
    faults = []
    for path, _, tree in trees():
        free = {f"{path}:{line}:" for line in fields(tree)}
        faults += [fault for fault in name_faults(path, tree) if fault.split(" ")[0] not in free]
    none_of(faults)


@pytest.mark.parametrize("room", ["ops", "feeds", "learners", "envs"])
def test_public_functions_say_what_they_take_and_give(room):
    none_of(
        [
            f"{path}:{node.lineno}: {node.name} has no docstring"
            for path, place, tree in trees()
            if place == room
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and not ast.get_docstring(node)
        ]
    )


def test_no_work_is_left_in_comments():
    words = ("TODO", "FIX" + "ME", "XXX")
    paths = [*SHORT, *(ROOT / "tests").rglob("*.py")]
    none_of(
        [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for path in paths
            if path != pathlib.Path(__file__)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if any(word in line for word in words)
        ]
    )


@pytest.mark.parametrize(
    ("room", "text", "fault"),
    [
        ("learners", "import jaxrl.envs.atari", "learners may not import"),
        ("learners", "from jaxrl import feeds", "learners may not import"),
        ("learners", "from ..loop import run", "learners may not import"),
        ("feeds", "def f():\n    from jaxrl.learners.dreamer import make", "feeds may not import"),
        ("envs", "from jaxrl.nets import blocks", "envs may not import"),
        ("ops", "from jaxrl.nothing import x", "ops may not import"),
        ("flags", "from jaxrl import types", "flags may not import"),
        ("nets", "import optax", "optax belongs to learners"),
        ("ops", "from flax import linen as nn", "flax.linen belongs to nets"),
        ("loop", "import flax\nflax.linen.Dense(3)", "flax.linen belongs to nets"),
        ("train", "from absl import flags", "absl.flags belongs to flags"),
        ("loop", "import os\nos.environ['A'] = 'b'", "os.environ belongs to runtime"),
        ("loop", "from os import environ", "os.environ belongs to runtime"),
        ("loop", "import jax as j\nj.config.update('a', 1)", "jax.config belongs to runtime"),
        ("evaluation", "import orbax.checkpoint as ocp", "orbax belongs to checkpoint"),
        ("rundir", "import pickle", "pickle"),
        ("rundir", "eval('1')", "eval()"),
        ("rundir", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle may be true"),
        ("rundir", "import subprocess\nsubprocess.run('ls', shell=True)", "shell may be true"),
        ("rundir", "from subprocess import run as r\nr('ls', shell=loud)", "shell may be true"),
        ("rundir", "import yaml as y\ny.load(open('x'))", "yaml.load"),
        ("rundir", "def f(exec):\n    exec('1')", "exec()"),
        ("rundir", "import builtins\nbuiltins.eval('1')", "builtins"),
        ("__init__", "from jaxrl import inference", "__init__ may not import"),
        ("__init__", "def f():\n    from jaxrl import loop", "__init__ may not import"),
        ("ops", "cache = {}", "cache is mutable"),
        ("ops", "CACHE = {}\ndef f(x):\n    CACHE[x] = 1", "CACHE is changed"),
        ("ops", "def f():\n    global count\n    count = 1", "global count"),
        ("ops", "def f(rng):\n    return rng", "rng says nothing"),
    ],
)
def test_these_tests_see_what_they_should(room, text, fault):
    path, tree = f"jaxrl/{room}/x.py", ast.parse(text)
    faults = [*import_faults(path, room, tree), *home_faults(path, room, tree), *unsafe_faults(path, tree)]
    faults += [*state_faults(path, tree), *name_faults(path, tree)]
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("learners", "import optax\nfrom jaxrl.nets import heads\nfrom jaxrl.types import Step"),
        ("loop", "from jaxrl import learners, schedule\nimport jax\njax.jit(f).lower(1).compile()"),
        ("config", "SIZES = {'1m': 512}\nSIZES.get('1m')"),
        ("runtime", "import os, jax\nos.environ['A'] = 'b'\njax.config.update('a', 1)"),
        ("train", "from jaxrl import __version__, flags, loop"),
        ("configs", "from jaxrl.config import Config"),
        ("__init__", "def load():\n    from jaxrl import inference, runtime"),
    ],
)
def test_these_tests_allow_what_they_should(room, text):
    path, tree = f"jaxrl/{room}.py", ast.parse(text)
    faults = [*import_faults(path, room, tree), *home_faults(path, room, tree), *unsafe_faults(path, tree)]
    assert [*faults, *state_faults(path, tree), *name_faults(path, tree)] == []
