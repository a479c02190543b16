"""What every metric means. `python -m jaxrl.glossary` writes docs/metrics.md; a test holds rows to it."""

import re
import sys
from typing import NamedTuple


class Entry(NamedTuple):
    name: str  # may end in `<...>`, which stands for any one part
    unit: str
    meaning: str


ENTRIES = (
    Entry("step", "env_steps", "simulator steps, action repeat counted, over all environments: the x-axis"),
    Entry("agent_steps", "agent_steps", "decisions: step / action_repeat"),
    Entry("updates", "updates", "gradient steps so far"),
    Entry("episodes", "episodes", "finished training episodes so far"),
    Entry("wall_s", "s", "time since the start, set-up included, summed over resumes"),
    Entry("nan_keys", "", "names of the metrics of this row that were not finite and are null"),
    Entry("episode/score", "reward", "mean of training episodes that ended since the last row, unclipped"),
    Entry("episode/length", "agent_steps", "the same, of their lengths"),
    Entry("episode/success", "", "share of them that succeeded; where the task defines it"),
    Entry("eval_episode/success_rate", "", "share of the evaluation's episodes that succeeded; likewise"),
    Entry("eval_episode/avg_score", "reward", "mean score of the evaluation's episodes"),
    Entry("eval_episode/std_score", "reward", "their standard deviation"),
    Entry("eval_episode/min_score", "reward", "the lowest"),
    Entry("eval_episode/max_score", "reward", "the highest"),
    Entry("eval_episode/length", "agent_steps", "their mean length"),
    Entry("eval_episode/episodes", "episodes", "how many there were"),
    Entry("train/loss/rec/<key>", "", "squared error of the reconstruction, summed over the observation"),
    Entry("train/loss/rew", "nats", "cross entropy of the reward head"),
    Entry("train/loss/con", "nats", "cross entropy of the continuation head"),
    Entry("train/loss/dyn", "nats", "KL(posterior || prior), prior trained, clipped below at loss.free_nats"),
    Entry("train/loss/rep", "nats", "the same, posterior trained"),
    Entry("train/loss/policy", "", "policy loss on imagined states"),
    Entry("train/loss/value", "nats", "critic loss on imagined states"),
    Entry("train/loss/repval", "nats", "critic loss on replayed states"),
    Entry(
        "train/loss/critic", "", "drq: squared error of both critics, summed; Huber if actions are discrete"
    ),
    Entry("train/loss/actor", "reward", "drq: minus the lower critic's value of the actor's noisy action"),
    Entry("train/q", "reward", "drq: mean value of replayed actions"),
    Entry("train/target", "reward", "drq: mean of what that should be, by n rewards and the target network"),
    Entry("train/noise", "", "drq: exploration, newest: deviation of actions, or epsilon"),
    Entry("train/dyn_ent", "nats", "entropy of the prior, summed over latents"),
    Entry("train/rep_ent", "nats", "entropy of the posterior"),
    Entry("train/adv", "", "mean advantage, in units of the return scale"),
    Entry("train/adv_std", "", "its standard deviation"),
    Entry("train/adv_mag", "", "its mean magnitude"),
    Entry("train/rew", "reward", "mean predicted reward of imagined steps"),
    Entry("train/con", "", "mean predicted continuation of imagined steps, discount included"),
    Entry("train/ret", "", "mean imagined return, less the lower percentile, over the return scale"),
    Entry("train/ret_min", "", "lowest of a batch, normalised in the same way"),
    Entry("train/ret_max", "", "highest of a batch"),
    Entry("train/ret_rate", "", "share of normalised returns of magnitude 1 or more"),
    Entry("train/ret_scale", "reward", "what advantages are divided by"),
    Entry("train/val", "reward", "mean value of imagined states"),
    Entry("train/tar", "reward", "mean return of imagined states"),
    Entry("train/slowval", "reward", "mean value by the slow critic"),
    Entry("train/weight", "", "mean weight of imagined states: the chance to get there"),
    Entry("train/ent/action", "nats", "entropy of the policy"),
    Entry("train/rand/action", "", "the same between its least (0) and its largest possible value (1)"),
    Entry("train/opt/loss", "", "the scalar that is minimised"),
    Entry("train/opt/grad_norm", "", "norm of its gradient, before clipping"),
    Entry("train/opt/actor_grad_norm", "", "drq: the same of the actor's; all others are the critic's"),
    Entry("train/opt/grad_rms", "", "root mean square of its gradient"),
    Entry("train/opt/update_rms", "", "root mean square of the step made"),
    Entry("train/opt/param_rms", "", "root mean square of the parameters, newest"),
    Entry("train/opt/lr", "", "learning rate, newest"),
    Entry("train/opt/skipped", "updates", "updates since the last row that were not finite: no effect"),
    Entry("train/opt/skipped_in_a_row", "updates", "the longest run of them, from before included; if any"),
    Entry("holdout/loss/<name>", "", "world-model losses on a batch of held-out episodes (replay.holdout)"),
    Entry("holdout/loss/rec/<key>", "", "the same, of a reconstruction"),
    Entry("replay/items", "agent_steps", "rows in replay"),
    Entry("replay/ram_gb", "GB", "memory of replay, allocated at the start"),
    Entry("replay/replay_ratio", "", "replayed over collected agent_steps, so far"),
    Entry("fps/env_steps", "env_steps/s", "since the last row; time of evaluation and saving not counted"),
    Entry("fps/updates", "updates/s", "the same"),
    Entry("time/compile_s", "s", "compilation, by all threads; in the first row of a process"),
    Entry("env/bad_states", "episodes", "given up since a simulator's numbers were not finite, so far"),
    Entry("time/env_s", "s", "waited for environments since the last row"),
    Entry("time/device_s", "s", "waited for what is told of rows, where environments are on the device"),
    Entry("time/policy_s", "s", "waited for actions, no update being due before them"),
    Entry("time/update_s", "s", "waited for updates (with the action that follows them)"),
    Entry("time/eval_s", "s", "evaluation"),
    Entry("time/save_s", "s", "the loop was held by saving"),
    Entry("time/other_s", "s", "everything else on the host"),
    Entry("usage/rss_gb", "GB", "memory of the process"),
    Entry("usage/device_gb", "GB", "memory in use on the accelerator"),
    Entry("usage/device_peak_gb", "GB", "the most so far"),
    Entry("sinks/<name>", "events", "faults and losses of a sink; only after one"),
)
TIME_KEYS = ("wall_s", "time/", "fps/", "usage/")  # what differs between two runs of one seed


def find(name: str) -> Entry | None:
    """The entry of a metric; None if there is none."""
    for entry in ENTRIES:
        if re.fullmatch(re.sub(r"<\w+>", "[^/]+", entry.name), name):
            return entry
    return None


def markdown() -> str:
    """The table of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `python -m jaxrl.glossary`. A row of metrics.jsonl holds those that are known at its step; "
        "the same names are TensorBoard's tags. A mean is over everything since the last row. "
        f"Two runs of one seed differ only in {', '.join(f'`{key}`' for key in TIME_KEYS)}.",
        "",
        "| name | unit | meaning |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{e.name}` | {e.unit} | {e.meaning} |" for e in ENTRIES)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
