"""What an update launches on an NVIDIA H200, counted in a program compiled here without one.

    python -m benchmarks.kernels --size=12m --batch=16 --length=64
    python -m benchmarks.kernels --size=12m --members=8
    python -m benchmarks.kernels --size=12m --policy

Small recurrent models are bound by launches: at 2.5 us each, ten thousand of them are 25 ms beside 2 ms of
arithmetic. One update of the world model's learner on 64x64 pixels, alone: replay is not in it. Needs the
packages of the extra `kernels`. Prints one JSON record:

  kernels         launches of one update, or with --policy of one decision; loops as often as they turn
  outside         those in no loop
  loops           trips and launches of one iteration, in the program's order
  kinds           launches by kind
  host_transfers  places at which host and device wait for each other; must be 0
  temp_mib        scratch memory
  arguments_mib   parameters, optimiser and batch
  compile_s       tracing, lowering and compiling
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import h200, hlo, record
from jaxrl import flags
from jaxrl.config import Value, replace


def main() -> None:
    args = arguments()
    try:
        h200.prepare(args.cuda)
    except LookupError as error:
        sys.exit(f"error: {error}")
    found = record.start("kernels") | measure(args)
    record.finish(found, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="12m", help="model.size")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--length", type=int, default=64, help="rows of a sequence")
    parser.add_argument("--dtype", default="bfloat16", help="model.compute_dtype")
    parser.add_argument("--actions", type=int, default=18)
    parser.add_argument("--members", type=int, default=0, help="as many learners at once, by vmap")
    parser.add_argument("--policy", action="store_true", help="the step of acting in one environment instead")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--cuda", default="", help="folder of a CUDA toolkit; default: pip's, the system's")
    parser.add_argument("--hlo", type=pathlib.Path, help="also write the optimised program to this file")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of one program."""
    function, shapes, donate = program(args)
    if args.members:
        import jax

        lead = (args.members,)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(lead + x.shape, x.dtype), shapes)
        function = jax.vmap(function)
    compiled, seconds = h200.compiled(function, shapes, donate)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if args.hlo:
        args.hlo.write_text(text, encoding="utf-8")
    return {
        "target": h200.CHIP["name"],
        "program": "policy" if args.policy else "update",
        "size": args.size,
        "batch": args.batch,
        "length": args.length,
        "dtype": args.dtype,
        "actions": args.actions,
        "members": args.members or 1,
        "settings": args.set,
        **hlo.count(text).record(),
        "temp_mib": mib(memory.temp_size_in_bytes),
        "arguments_mib": mib(memory.argument_size_in_bytes),
        "compile_s": round(seconds, 1),
    }


def program(args: argparse.Namespace) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]:
    """The function, the shapes of its arguments, and which of them are donated."""
    import jax
    import numpy as np

    from jaxrl import learners
    from jaxrl.types import ArraySpec, Discrete, Spaces

    pairs = (text.partition("=") for text in args.set)
    changes: dict[str, Value] = {"model.size": args.size, "model.compute_dtype": args.dtype}
    changes |= {"batch_size": args.batch, "batch_length": args.length}
    changes |= {name: flags.parse_override(name, value) for name, _, value in pairs}
    config = replace(flags.load_preset("atari100k"), changes)
    spaces = Spaces(obs={"image": ArraySpec((64, 64, 3), np.dtype(np.uint8))}, action=Discrete(args.actions))
    learner = learners.make(config, spaces)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key)
    if args.policy:
        params, carry = jax.eval_shape(lambda s: (learner.policy_params(s), learner.initial_carry(1)), state)
        return lambda *a: learner.act(*a, "train"), (params, carry, step(spaces, 1), key), (1,)
    assert learner.update is not None
    return learner.update, (state, batch(learner, spaces, args), key), (0,)


def step(spaces: Any, n: int) -> Any:
    """Shapes of what n environments give."""
    from jaxrl.parts import step_shapes

    return step_shapes(spaces, n)


def batch(learner: Any, spaces: Any, args: argparse.Namespace) -> Any:
    """Shapes of what replay gives to an update: leaves [T + context, B, ...]."""
    import jax
    import jax.numpy as jnp

    from jaxrl.types import Batch

    lead = (args.length + learner.context, args.batch)

    def of(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(lead + shape, dtype)

    flag = of((), jnp.bool_)
    latents = jax.tree.map(lambda x: of(x.shape, x.dtype), jax.eval_shape(learner.latent_zeros))
    return Batch(
        obs={name: of(spec.shape, spec.dtype) for name, spec in spaces.obs.items()},
        action=of((), jnp.int32),
        reward=of((), jnp.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        latents=latents,
    )


def mib(size: float) -> float:
    return round(size / 2**20, 2)


if __name__ == "__main__":
    main()
