"""Devices: what jax finds, whether it computes, and why a GPU or TPU that is asked for is not there."""

import dataclasses
import math
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

from jaxrl import runtime
from jaxrl.checks import software
from jaxrl.checks.child import Answer, ask
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish, first_line, size

ROOT = pathlib.Path("/")
NVIDIA, COMPUTES = "0x10de", ("0x0300", "0x0302", "0x1200")  # of PCI: the vendor, classes of its cards
CUDA13_DRIVER = 580  # the oldest NVIDIA driver that CUDA 13 runs on
SMI_S = 10.0
BUSY = 0.2  # share of a card's memory that others hold, from which on jax may not get what it takes
NONE_VISIBLE = ("", "-1", "none", "void", "nodevfiles")  # of CUDA_VISIBLE_DEVICES

Obstacle = tuple[str, str]  # what stands in the way, remedy


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What the system shows, whatever jax makes of it."""

    nvidia: bool
    driver: (
        int | None
    )  # of NVIDIA, its major version; 0: none is loaded; None: there is one, of unknown version
    tpu: bool


def device(wish: Wish) -> Iterator[Finding]:
    """The device that a run with this setting would use; then a step of physics on it."""
    there = hardware()
    obstacles = list(why_none(wish.device, there)) if wish.device in ("gpu", "tpu") else []
    yield from cards(there)
    if wish.fast:
        if obstacles:
            yield Finding(FAULT, "device", *told(f"--device={wish.device} cannot work", obstacles))
        return
    # These are no fault of the device, and are told by checks of their own.
    answer = ask("device", wish.device, MUJOCO_GL=None, JAX_DISABLE_JIT=None)
    if error := answer.error("find"):
        yield not_found(error.partition(f"; {runtime.WHY}")[0], obstacles)
        return
    yield computing(wish, answer, there)
    if not answer.error("multiply"):
        yield physics(answer)


def not_found(error: str, obstacles: list[Obstacle]) -> Finding:
    """Of a device that jax does not find, or that ends the process."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_ALLOCATOR"):
        if name in error:
            return Finding(FAULT, "device", error, f"unset {name}")
    if obstacles:
        return Finding(FAULT, "device", *told(error, obstacles))
    if "no answer" in error:
        return Finding(FAULT, "device", error, "nvidia-smi shows whether the card answers; or --device=cpu")
    more = "python -c 'import jax; print(jax.devices())' shows more; --device=cpu works without"
    return Finding(FAULT, "device", error, more)


def computing(wish: Wish, answer: Answer, there: Hardware) -> Finding:
    """Of a device that was found."""
    found = answer.stages["find"]
    name = found["kind"] if found["count"] == 1 else f"{found['count']} x {found['kind']}"
    name = f"{found['platform']}: {name}" if found["platform"] != found["kind"] else name
    if error := answer.error("multiply"):
        remedy = "nvidia-smi shows who uses the card, and whether it answers; or --device=cpu"
        return Finding(FAULT, "device", f"{name}: cannot compute: {error}", remedy)
    facts = answer.stages["multiply"]
    if facts["wrong"]:
        what = f"{name}: the product of two matrices is wrong on {', '.join(facts['wrong'])}"
        return Finding(FAULT, "device", what, "use another device, and have this one tested: nvidia-smi -q")
    what = f"{name}, {size(found['memory'])} of memory; computes rightly"
    if found["platform"] == "cpu" and wish.device == "auto":
        for setting, present, words in (("gpu", there.nvidia, "NVIDIA card"), ("tpu", there.tpu, "TPU")):
            if present:
                unused = f"{what}, but the {words} of this machine is not used"
                return Finding(WARN, "device", *told(unused, list(why_none(setting, there))))
    return Finding(OK, "device", f"{what} ({facts['seconds']:.1f} s with compilation)")


def told(what: str, obstacles: list[Obstacle]) -> tuple[str, str]:
    """(what, remedy) with what stands in the way of it."""
    if not obstacles:
        return (
            f"{what}; nothing seems to stand in the way",
            "nvidia-smi; python -c 'import jax; jax.devices()'",
        )
    reasons, remedies = zip(*obstacles, strict=True)
    return f"{what}: {', '.join(reasons)}", "; ".join(remedies)


def physics(answer: Answer) -> Finding:
    """The step of a task that was simulated and drawn on the device."""
    facts, error = answer.stages.get("simulate", {}), answer.error("simulate")
    if not error and not (facts["drawn"] and math.isfinite(facts["reward"])):
        error = "a step gives no finite reward, or no picture"
    if error:
        remedy = "pip install --force-reinstall mujoco mujoco-mjx"
        return Finding(FAULT, "physics", f"mjx_ and playground_ tasks do not work: {error}", remedy)
    what = f"mujoco-mjx {facts['version']}: simulated a step and drew it"
    return Finding(OK, "physics", f"{what} ({facts['seconds']:.1f} s with compilation)")


def cards(there: Hardware) -> Iterator[Finding]:
    """What nvidia-smi says of the cards, before this program uses one."""
    if not there.nvidia or not shutil.which("nvidia-smi"):
        return
    try:
        lines = smi()
    except (OSError, subprocess.SubprocessError) as error:
        what = f"nvidia-smi gives no answer ({first_line(error)})"
        remedy = "sudo dmesg | grep -i nvrm tells why; restarting the machine brings most cards back"
        yield Finding(FAULT, "GPU", what, remedy)
        return
    for line in lines:
        name, driver, used, total = (x.strip() for x in line.rsplit(",", 3))
        what = f"{name}, driver {driver}, {used} of {total} MiB in use"
        if used.isdigit() and total.isdigit() and int(used) > BUSY * int(total):
            share = max(0.05, int((0.95 - int(used) / int(total)) * 20) / 20)
            remedy = f"end what nvidia-smi lists, or train with --runtime.mem_fraction={share:g}"
            yield Finding(WARN, "GPU", f"{what} by others; jax takes three quarters at start", remedy)
        else:
            yield Finding(OK, "GPU", what)


def why_none(name: str, there: Hardware) -> Iterator[Obstacle]:
    """What stands in the way of a "gpu" or "tpu", as far as one can see without asking jax."""
    given, wanted = runtime.variable("JAX_PLATFORMS") or "", runtime.PLATFORMS[name]
    if given and wanted not in given.split(","):
        yield f"JAX_PLATFORMS={given} excludes it", "unset JAX_PLATFORMS"
    yield from why_no_tpu(there) if name == "tpu" else why_no_gpu(there)


def why_no_tpu(there: Hardware) -> Iterator[Obstacle]:
    if not there.tpu:
        yield "this machine shows no TPU (no /dev/accel0, no /dev/vfio/0)", "use --device=cpu, or a TPU VM"
    elif not software.installed("libtpu"):
        yield "libtpu is not installed", "pip install 'jax[tpu]'"


def why_no_gpu(there: Hardware) -> Iterator[Obstacle]:
    visible = runtime.variable("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip().lower() in NONE_VISIBLE:
        yield f"CUDA_VISIBLE_DEVICES='{visible}' hides every card", "unset CUDA_VISIBLE_DEVICES"
    if not there.nvidia:
        remedy = "use --device=cpu, or a machine with a card; a container gets it by docker run --gpus=all"
        yield "this machine shows no NVIDIA card (no /dev/nvidia0)", remedy
        return
    if there.driver == 0:
        remedy = f"install NVIDIA's driver {CUDA13_DRIVER} or newer, until nvidia-smi lists the card"
        yield "the card has no driver (no /proc/driver/nvidia)", remedy
    old = 0 < (there.driver or 0) < CUDA13_DRIVER
    plugins = software.plugins()
    if not any("cuda" in x for x in plugins):
        yield "jax has no CUDA plugin", f"pip install 'jax[{'cuda12' if old else 'cuda13'}]'"
    elif old and not any("cuda12" in x for x in plugins):
        remedy = "pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install 'jax[cuda12]'"
        yield f"CUDA 13 needs driver {CUDA13_DRIVER}, this one is {there.driver}", remedy


# Measurements.


def hardware() -> Hardware:
    """Looks at what the kernel shows."""
    nvidia = [*ROOT.glob("dev/nvidia[0-9]*"), *ROOT.glob("proc/driver/nvidia/gpus/*")]
    of_windows = [*ROOT.glob("usr/lib/wsl/lib/libcuda.so*")]  # in its subsystem for Linux
    for entry in ROOT.glob("sys/bus/pci/devices/*"):
        if read(entry / "vendor") == NVIDIA and read(entry / "class").startswith(COMPUTES):
            nvidia.append(entry)
    version = re.search(r"\s(\d{3})\.\d+(?:\.\d+)?\s", read(ROOT / "proc/driver/nvidia/version"))
    driver = int(version[1]) if version else None if of_windows else 0
    tpu = [*ROOT.glob("dev/accel[0-9]*"), *ROOT.glob("dev/vfio/[0-9]*")]
    return Hardware(nvidia=bool(nvidia or of_windows), driver=driver, tpu=bool(tpu))


def read(file: pathlib.Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def smi() -> list[str]:
    """A line for each card: name, driver, MiB in use, MiB in all."""
    query = ["--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(
        ["nvidia-smi", *query], capture_output=True, text=True, timeout=SMI_S, check=True, errors="replace"
    )
    return [line for line in done.stdout.splitlines() if line.count(",") >= 3]
