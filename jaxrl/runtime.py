"""The process and its devices: the only file that touches os.environ, jax.config and the device list.

`prepare` must run before jax is imported for the first time.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from jaxrl import hugepages
from jaxrl.config import Config, ConfigError, DistributedConfig, replace
from jaxrl.exits import PeerLost
from jaxrl.hosts import ALONE, Alone, free_port

if TYPE_CHECKING:
    from jaxrl.layout import Layout

# XLA:CPU's concurrency-optimised schedule keeps up to twice the activations alive and gains no time. Only the
# environment turns it off: as a compiler option it is ignored (jaxlib 0.10.2).
SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"
# What YNNPACK runs: by default convolutions too, on one core; left to Eigen they use all, in half the time.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
SEVERAL = "--xla_force_host_platform_device_count"  # makes a CPU pose as several devices
PLATFORMS = {"auto": "", "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
# Tracing makes millions of small objects that live on: at the usual thresholds a sixth of a start goes into
# looking for garbage among them.
GARBAGE = (100_000, 20, 50)
# Of MUJOCO_GL: libraries, and words for its default and for none. mujoco 4.0 cannot be imported with another.
GL_NAMES = ("egl", "osmesa", "glfw", "glx", "cgl", "wgl")
GL_WORDS = ("", "enable", "enabled", "on", "true", "1", "disable", "disabled", "off", "false", "0")
NAMED = "name HOST:PORT, --distributed.processes and --distributed.process"
WHY = "use --device=cpu, or see what python -m jaxrl.doctor says"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    layout: "Layout"  # devices of parameters and updates
    replay: Any  # jax.Device of the ring; where it is the learner's, the ring lies as the layout says
    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # the devices' own name
    hosts: Alone = ALONE  # the processes that share the run

    @property
    def learner(self) -> Any:
        """The first jax.Device of this process for parameters and updates."""
        return self.layout.here[0]

    @property
    def count(self) -> int:
        """Devices that the run uses, in all processes."""
        return self.layout.count

    @property
    def memory(self) -> int:
        """Bytes of the device that replay lies on."""
        return device_memory(self.replay)


def prepare(config: Config) -> None:
    """Sets what must be set before jax is imported, and how often Python looks for garbage.

    Raises:
      ConfigError: if the device was chosen otherwise by the environment.
    """
    gc.set_threshold(*GARBAGE)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    wanted = PLATFORMS[config.device]
    given = os.environ.get("JAX_PLATFORMS", "")
    if wanted and given and wanted not in given.split(","):
        raise ConfigError(f"device={config.device}: JAX_PLATFORMS={given} excludes it; unset that variable")
    if fault := gl_fault():
        raise ConfigError(f"{fault}; unset that variable, or MUJOCO_GL=egl")
    if wanted:
        os.environ["JAX_PLATFORMS"] = wanted if wanted == "cpu" else f"{wanted},cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    if SCHEDULER not in flags and flags_are_known():
        os.environ["XLA_FLAGS"] = f"{flags} --{SCHEDULER}=false".strip()
    if config.runtime.mem_fraction:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(config.runtime.mem_fraction)


def ask_for_huge_pages() -> None:
    """Begins this program once more, as the same process, where `hugepages` has something to change."""
    if sys.executable and (changes := hugepages.changes(os.environ)):
        with contextlib.suppress(OSError):  # it runs as well without
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | changes)


def flags_are_known() -> bool:
    """XLA ends the process at a flag that it does not know, so flags are set only where they were tried."""
    return (0, 10) <= tuple(map(int, metadata.version("jaxlib").split(".")[:2])) <= (0, 11)


def start(config: Config, hosts: Alone = ALONE) -> Machine:
    """Imports and configures jax, finds the devices.

    Args:
      hosts: the processes of the run.

    Raises:
      ConfigError: if the named device is missing.
      PeerLost: if the processes cannot be connected.
    """
    import jax

    from jaxrl.layout import Layout, devices_of_all, devices_wanted

    if folder := cache_folder(config.runtime.compile_cache):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if config.runtime.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.runtime.matmul_precision)
    jax.config.update("jax_debug_nans", config.runtime.debug_nans)
    if hosts.count > 1:
        connect(config.distributed, hosts)
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        # The latter is jax's way to say that nothing is there of what JAX_PLATFORMS asks for.
        asked = f"nothing found for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        reason = str(error).split("\n")[0] or asked
        raise ConfigError(f"device={config.device}: not available ({reason}); {WHY}") from error
    device = devices[0]
    if config.device not in ("auto", device.platform):
        raise ConfigError(f"device={config.device}: only {device.platform} is available; {WHY}")
    host = jax.local_devices(backend="cpu") if device.platform != "cpu" else devices
    on_device = config.replay.placement == "device"
    # On a CPU that poses as several devices, the last one stands for the host: placements differ in tests.
    ring = device if on_device else host[-1]
    each = devices_wanted(config, devices, hosts)
    there = devices[:each] if hosts.count == 1 else devices_of_all(jax.devices(), each)
    return Machine(Layout(tuple(there)), ring, device.platform, device.device_kind, hosts)


def with_cluster(wanted: DistributedConfig) -> DistributedConfig:
    """With what the cluster that has started this process says (Slurm, TPU pods, Open MPI), where "auto".

    Raises:
      ConfigError: if it says nothing.
    """
    if wanted.coordinator != "auto":
        return wanted
    from jax._src.clusters import ClusterEnv  # behind jax.distributed.initialize, which does not tell

    given = wanted.processes or None, wanted.process if wanted.process >= 0 else None
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, *given, None, None, int(wanted.timeout_s)
        )
    except Exception as error:  # whatever the cluster's variables lack
        raise ConfigError(
            f"distributed.coordinator=auto: the cluster says too little ({type(error).__name__}: {error}); "
            f"{NAMED}"
        ) from error
    address, processes, process, local = found
    if address is None or processes is None or process is None:
        raise ConfigError(
            f"distributed.coordinator=auto: no Slurm, TPU pod or Open MPI has started this process; {NAMED}"
        )
    if local is not None and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        os.environ["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, local))
    return dataclasses.replace(wanted, coordinator=address, processes=processes, process=process)


def connect(wanted: DistributedConfig, hosts: Alone) -> None:
    """Connects the processes in jax, too: their devices become one machine. Raises PeerLost."""
    import jax
    from jax._src import distributed

    from jaxrl.hosts import service

    silence = int(2 * wanted.heartbeat_s) + 5  # ours are earlier, and say more

    def begun() -> str:
        host = wanted.coordinator.rpartition(":")[0]
        try:
            port, where = free_port(host.strip("[]")), host
        except OSError:  # it is another network's name of this machine
            port, where = free_port(""), "[::]"
        hosts.service = service.started(f"{where}:{port}", hosts.count, silence)
        return f"{host}:{port}"

    library: Any = vars(distributed)["_jax"]
    made = library.get_distributed_runtime_service
    try:
        address = hosts.led(begun)
        # jax would begin another one inside of process 0; see jaxrl/hosts/service.py.
        library.get_distributed_runtime_service = lambda *_, **__: None
        jax.distributed.initialize(
            address,
            hosts.count,
            hosts.index,
            cluster_detection_method="deactivate",
            initialization_timeout=int(wanted.timeout_s),
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=30,
        )
    except (OSError, RuntimeError) as error:
        raise PeerLost(f"distributed.coordinator={wanted.coordinator}: {error}; choose another") from error
    finally:
        library.get_distributed_runtime_service = made
    if jax.process_index() != hosts.index:  # what is divided would be put together in another order
        raise ConfigError(
            f"distributed.process={hosts.index}: jax counts it as {jax.process_index()}; give it that number"
        )


def disconnect(hosts: Alone) -> None:
    """Undoes `connect`, where all is well and all call it: else jax takes the first to end for lost."""
    if hosts.count == 1:
        return
    import jax

    hosts.gather(None)
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    hosts.gather(None)  # one that has not heard of its end yet would abort if the service were gone
    if hosts.service is not None:
        hosts.service.kill()
        hosts.service.wait()


def resolve(config: Config, machine: Machine) -> Config:
    """The config with its "auto" values replaced by what they mean on this machine."""
    accelerated = machine.platform != "cpu"
    changes: dict[str, str | int] = {}
    if config.model.size == "auto":
        changes["model.size"] = "12m" if accelerated else "1m"
    if config.model.compute_dtype == "auto":
        changes["model.compute_dtype"] = "bfloat16" if accelerated else "float32"
    return replace(config, changes)


def compiler_options(platform: str) -> dict[str, bool | str]:
    """XLA options for the programs of the loop."""
    if platform != "cpu":
        return {}
    # The newer emitters take 0.9 GB and half as much time again to compile an update; no gain in speed.
    options: dict[str, bool | str] = {"xla_cpu_use_fusion_emitters": False}
    if YNNPACK not in os.environ.get("XLA_FLAGS", "") and flags_are_known():
        options[YNNPACK] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    return options


def cache_folder(setting: str) -> str:
    """Folder of compiled programs, "" for none."""
    if setting == "off":
        return ""
    if setting != "auto":
        return str(pathlib.Path(setting).expanduser().resolve())
    root = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return root or str(pathlib.Path.home() / ".cache" / "jaxrl" / "xla")


def device_memory(device: Any) -> int:
    """Bytes that the device has; of a CPU, the machine's memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def devices() -> list[Any]:
    """The devices of this process, once `start` has been called."""
    import jax

    return jax.local_devices()


def variable(name: str) -> str | None:
    """An environment variable; None if it is not set."""
    return os.environ.get(name)


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of this process with some variables changed, or with None removed: for a child."""
    wanted = {**os.environ, **changes}
    return {name: value for name, value in wanted.items() if value is not None}


def gl_fault() -> str:
    """What is wrong with MUJOCO_GL, without which mujoco cannot be imported; "" if nothing."""
    given = os.environ.get("MUJOCO_GL", "")
    if given.lower().strip() in (*GL_NAMES, *GL_WORDS):
        return ""
    return f"MUJOCO_GL={given[:80]}: mujoco does not know it"


def resident_memory() -> int:
    """Bytes of host memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """The most bytes of host memory that this process has held so far."""
    with open("/proc/self/status") as file:
        kib = next((line.split()[1] for line in file if line.startswith("VmHWM")), 0)
    return int(kib) * 1024


def memory_use(device: Any) -> dict[str, float]:
    """Memory of this process and of the device, in GB, for the metrics."""
    use = {"usage/rss_gb": resident_memory() / 1e9}
    if device.platform != "cpu" and (stats := device.memory_stats()):
        use["usage/device_gb"] = stats["bytes_in_use"] / 1e9
        use["usage/device_peak_gb"] = stats.get("peak_bytes_in_use", 0) / 1e9
    return use


def give_back_memory() -> None:
    """Returns freed memory to the system, which malloc keeps otherwise: after compiling, some 250 MiB."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


def give_back_devices() -> None:
    """Ends this process's work on accelerators, so that another one can have their memory.

    No array survives it. On a CPU nothing is held, so nothing is done.
    """
    if (jax := sys.modules.get("jax")) is None or jax.default_backend() == "cpu":
        return
    from jax.extend import backend

    jax.clear_caches()
    gc.collect()
    backend.clear_backends()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("jaxrl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "envpool", "mujoco", "mujoco-mjx")
    names += ("playground", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], **found}


def leave_at_once(code: int) -> NoReturn:
    """Ends the process without clean-up, whatever its threads do."""
    os._exit(code)


def say_at_once(text: str) -> None:
    """Writes to standard error from a signal handler, where buffered output is not allowed."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def jax_watches_sigterm() -> bool:
    """True where jax.distributed has connected this process with others: it has a handler of its own then."""
    jax = sys.modules.get("jax")  # the question comes before it is imported, too
    return jax is not None and jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service


def preempted(poll: int) -> bool:
    """True once any of the connected processes got a SIGTERM, in all of them at the same poll.

    Args:
      poll: one more at each call. jax agrees with all processes on the poll that follows the last one made
        anywhere, and answers True at that one only.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(poll)


def end_with_parent() -> None:
    """Makes the system send SIGTERM to this process when the one that started it is gone. Linux only."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def on_main_thread() -> bool:
    """True where signal handlers may be installed."""
    return threading.current_thread() is threading.main_thread()


def has_colors(stream: TextIO) -> bool:
    """Whether it is a terminal whose reader has not asked for none (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
