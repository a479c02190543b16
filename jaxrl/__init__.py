"""A JAX trainer for reinforcement learning from pixels. Importing the package imports nothing else.

`jaxrl.load` gives the policy of a trained run. All else is a command, such as python -m jaxrl.train.
"""

__version__ = "0.1.0"


def load(run, which="", *, device: str = "auto", mode: str | None = None, seed: int = 0):
    """The policy of a run or checkpoint, ready to act: its parameters and nothing else of the run.

        import jaxrl

        policy = jaxrl.load("runs/catch/toy_catch-...")
        env = policy.make_env()
        step, carry, score = env.reset(), None, 0.0
        while not step.is_last.all():
            action, carry = policy(step.obs, carry)
            env.send(action)
            step = env.recv()
            score += float(step.reward[0])
        print(policy.task, policy.step, score)

    Args:
      run: path of a run directory, or of a folder in its checkpoints/.
      which: "best", "latest" or a step; by default the best, if there is one, else the latest.
      device: "cpu", "gpu" or "tpu"; "auto" is what jax computes on by default. Where jax was imported before,
        nothing of it is configured anew: the device must be among those that it has.
      mode: "sample" draws actions, "mode" takes the likeliest; by default what the run evaluates with.
      seed: of everything that is drawn. With the same seed, `policy.make_env` and this policy play the
        episodes of `python -m jaxrl.evaluate`.

    Returns:
      jaxrl.inference.Policy.

    Raises:
      jaxrl.config.ConfigError: no such run, an argument that cannot be, a device that is not there.
      jaxrl.exits.NoCheckpoint: nothing intact to load.
    """
    import sys

    from jaxrl import runtime
    from jaxrl.config import Config, replace

    asked, early = replace(Config(), {"device": device}), "jax" not in sys.modules
    if early:  # later it would change nothing but what this process hands down to others
        runtime.prepare(asked)
    from jaxrl import inference  # imports jax, which takes seconds

    return inference.load(str(run), str(which), inference.Manner(device, mode, seed), early)
