"""What a run would take of an NVIDIA H200's memory, worked out here from programs compiled without one.

    python -m benchmarks.memory_h200 --config=atari100k --task=atari_pong --out=memory_h200.json

Takes the trainer's flags. Nothing is measured: the peak is what `--dry_run` would state there, from shapes
and from what XLA says of the run's own programs; only for environments that step on the host. Needs the
packages of the extra `kernels`. Prints one JSON record.
"""

import argparse
import pathlib
import sys
import types
from typing import Any

from benchmarks import h200, record
from jaxrl import flags


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    args, words = parser.parse_known_args()
    try:
        h200.prepare()
    except LookupError as error:
        sys.exit(f"error: {error}")
    found = record.start("memory_h200") | computed(words)
    record.finish(found, args.out)


def computed(words: list[str]) -> dict[str, Any]:
    """The record, in MiB.

    Args:
      words: flags of the trainer.
    """
    import jax

    from jaxrl import envs, memory, metrics, parts, runtime, sources
    from jaxrl.assembly import assemble
    from jaxrl.config import replace
    from jaxrl.demand import Demand
    from jaxrl.layout import Layout

    device = jax.local_devices(backend="cpu")[0]
    machine = runtime.Machine(Layout((device,)), device, "gpu", h200.CHIP["name"])
    config = replace(runtime.resolve(flags.parse(words).config, machine), {"replay.budget_gb": 100.0})
    env = envs.make(config.task, config.env, num_envs=config.env.num_envs, seed=0)
    made = assemble(config, machine, env)
    if made.batched:
        sys.exit(f"error: {config.task} steps on the device, which is not worked out here")
    kinds = metrics.kinds_of(parts.metric_shapes(made))
    compiled = {}
    for name, source in sources.programs(made, metrics.empty(kinds)).items():
        program, seconds = h200.compiled(source.function, source.shapes, source.donate)
        compiled[name] = sources.Compiled(program, seconds, Demand.of(program), 0.0)
    programs: Any = types.SimpleNamespace(compiled=compiled, kinds=kinds)
    needs = memory.needed(made, programs, env)
    env.close()
    return {
        "computed_for": machine.kind,
        "flags": words,
        "model": config.model.size,
        "dtype": config.model.compute_dtype,
        "stays_mib": {name: mib(size) for name, size in needs.stays.items()},
        "calls_mib": {name: mib(size) for name, size in needs.calls.items() if size > memory.LEAST},
        "peak_device_mib": mib(needs.device),
        "saving_host_mib": mib(needs.saving),
    }


def mib(size: int) -> float:
    return round(size / 2**20, 1)


if __name__ == "__main__":
    main()
