"""What holds for every test, in all processes of a session and in those that they start.

Set before jax is imported: tests run on the CPU, compile things once, and quickly rather than well. The code
that XLA makes with all care is tried by what is measured: the benchmarks.
"""

import os
import pathlib

QUICK = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "jaxrl" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("XLA_FLAGS", QUICK)

# Files are handed out one by one to whichever process is free. The longest come first: at the end no process
# shall be left with one of them while the other has nothing to do.
LONGEST = """
hosts population exact combinations runs nans mjx_so101 faults benchmarks learner drq benchmarks_run
mjx_tasks resume continue storm memory videos devices onboard runs_command formats cli losses supervise
doctor render openloop dreams evaluate flags train inference wandb report playground dmc atari envs
""".split()


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
