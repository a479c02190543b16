"""Programs for an NVIDIA H200, compiled on a machine without one.

XLA needs the CUDA plugin and ptxas for it, but neither a driver nor cuDNN nor a device. Nothing is tuned on
the device, so tiles are defaults: count launches and bytes in such programs, do not guess times.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import time
from importlib import metadata
from typing import Any

PLUGIN = "jax-cuda13-plugin"
REMEDY = "pip install 'jaxrl[kernels]'"
# Source: NVIDIA's H200 data sheet, and the CUDA programming guide's table for compute capability 9.0.
CHIP = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "memory_bandwidth": 4_800 * 10**9,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 141 * 2**30,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "device_address_bits": 64,
    "device_vendor": "NVIDIA Corporation",
    "name": "NVIDIA H200",
    "driver_version": "13.0.0",
    "runtime_version": "13.0.0",
    "compile_time_toolkit_version": "13.0.0",
    "dnn_version": "9.10.0",
}


def prepare(cuda: str = "") -> None:
    """Sets what must be set before jax is imported.

    Args:
      cuda: folder of a CUDA toolkit with bin/ptxas; "" for the one that pip or the system has.

    Raises:
      LookupError: if the plugin or ptxas is missing or does not fit, with the remedy.
    """
    try:
        plugin = metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        raise LookupError(f"{PLUGIN} is not installed, which compiles for NVIDIA GPUs: {REMEDY}") from None
    if plugin != (jaxlib := metadata.version("jaxlib")):
        raise LookupError(f"{PLUGIN} {plugin} does not fit jaxlib {jaxlib}: pip install {PLUGIN}=={jaxlib}")
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={toolkit(cuda)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def toolkit(cuda: str) -> str:
    """The CUDA folder that holds bin/ptxas.

    Raises:
      LookupError: if there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    found = [pathlib.Path(cuda)] if cuda else []
    if not cuda:
        found += (
            [pathlib.Path(place) / "cu13" for place in (spec.submodule_search_locations or ())]
            if spec
            else []
        )
        found += [pathlib.Path(path).resolve().parents[1]] if (path := shutil.which("ptxas")) else []
        found += [pathlib.Path("/usr/local/cuda")]
    for folder in found:
        if (folder / "bin" / "ptxas").is_file():
            return str(folder)
    where = f" in {cuda}/bin" if cuda else ""
    raise LookupError(f"no ptxas{where}, NVIDIA's assembler: {REMEDY}, or name a toolkit with --cuda")


def description() -> str:
    """The chip as XLA wants it described: a GpuTargetConfigProto in text."""
    fields = "\n".join(f"  {name}: {json.dumps(value)}" for name, value in CHIP.items())
    capability = "  cuda_compute_capability { major: 9 }"
    rest = 'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
    return f'gpu_device_info {{\n{fields}\n{capability}\n}}\n{rest}device_description_str: "NVIDIA H200"\n'


def compiled(function: Any, shapes: tuple[Any, ...], donate: tuple[int, ...] = ()) -> tuple[Any, float]:
    """A function compiled for one H200, and the seconds that it took.

    Args:
      shapes: its arguments, or what is known of them: trees of arrays or ShapeDtypeStruct.
    """
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc("1x1x1", "cuda", target_config=description(), topology="1x1x1")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    began = time.monotonic()
    program = jax.jit(function, donate_argnums=donate, out_shardings=place)
    lowered = program.trace(*placed).lower(lowering_platforms=("cuda",))
    return lowered.compile(), time.monotonic() - began
