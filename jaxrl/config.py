"""The configuration of a run: every setting that a user may change, once, with unit, range and source.

A setting is one line of a frozen section below; flags, help, docs/flags.md and config.json are made from
it. Dotted names ("replay.capacity") are the flag names. Units: env_steps count the action repeat and all
environments, agent_steps are decisions, updates gradient steps. A period of 0 means never. Sources:
"dreamerv3" is danijar/dreamerv3 of May 2026 (configs.yaml and the code that reads it), "DreamerV3 2023"
its first release, "Atari-100k" that benchmark as dreamerv3 runs it, "DrQ-v2"
facebookresearch/drqv2 and its paper, "pick-101" the project ggand0/pick-101, "own choice" ours. A section's
`source` holds where a leaf names none.

Standard library only: reading a configuration must not cost an import of jax.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxrl.looks import PlotConfig, TensorboardConfig, TerminalConfig, WandbConfig
from jaxrl.schema import DREAMER, OWN, ConfigError, Leaf, Section, Value, leaf, leaves_of, nearest, show

BENCHMARK = "Atari-100k"
DRQ = "DrQ-v2"
SIZES = {"1m": 512, "12m": 2048, "25m": 3072, "50m": 4096, "100m": 6144, "200m": 8192, "400m": 12288}
DTYPES = ("auto", "float32", "bfloat16")
RENDERERS = ("raycast", "warp")
PLACEMENTS = ("auto", "device", "host")


class Widths(NamedTuple):
    """Widths of a world model."""

    deter: int  # recurrent state
    hidden: int  # layers of the recurrent core
    classes: int  # of each categorical latent
    depth: int  # base channels of the image encoder and decoder
    units: int  # layers of the heads


DEBUG_WIDTHS = Widths(deter=64, hidden=16, classes=4, depth=2, units=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig(Section):
    prefix, source = "env.", BENCHMARK
    num_envs: int = leaf(1, "training environments stepped together", "environments", low=1, high=65_536)
    action_repeat: int = leaf(4, "simulator steps that an action is held for", "env_steps", low=1, high=1_000)
    size: int = leaf(64, "height and width of an image observation", "pixels", low=8, high=512)
    gray: bool = leaf(False, "one grey channel instead of RGB")
    stack: int = leaf(1, "newest frames shown together, as channels", "frames", low=1, high=16)
    sticky: float = leaf(0.0, "chance that a simulator step repeats the action before", low=0, high=1)
    full_actions: bool = leaf(False, "all 18 Atari actions instead of the game's minimal set")
    actions: int = leaf(
        0, "size of a set that games of a population share; 0 = its own", "actions", low=0, high=18
    )
    noops: int = leaf(30, "most random no-ops that start an episode", "frames", low=0, high=10_000)
    fire_reset: bool = leaf(False, "press FIRE when an episode starts")
    lives: str = leaf("unused", "what a lost life ends", choices=("unused", "terminal", "discount"))
    clip_reward: bool = leaf(False, "train on the sign of the reward; scores stay raw")
    time_limit: int = leaf(108_000, "length at which an episode is cut; 0 = none", "env_steps", low=0)
    threads: int = leaf(0, "simulator threads; 0 = as many as useful", source=OWN, low=0, high=4_096)
    observe: str = leaf("pixels", "what a physics task shows", source=OWN, choices=("pixels", "state"))
    cameras: str = leaf("auto", "of a physics task, names with commas; auto = its own choice", source=OWN)
    samples: int = leaf(1, "rays of a pixel along each edge", "rays", source=OWN, low=1, high=4)
    renderer: str = leaf("raycast", "of physics tasks; warp needs NVIDIA", source=OWN, choices=RENDERERS)
    randomize: float = leaf(0.0, "strength of random colours, lights, cameras", source=OWN, low=0, high=1)
    stage: int = leaf(3, "start states of mjx_so101_lift, 4 the hardest", "stage", source=OWN, low=0, high=4)
    promote: float = leaf(0.0, "success rate that raises env.stage; 0 = never", source=OWN, low=0, high=1)
    bonus: float = leaf(10.0, "reward of a success of mjx_so101_lift", source="pick-101", low=0)
    control: str = leaf("tool", "what moves mjx_so101_lift", source=OWN, choices=("tool", "joints"))
    placement: str = leaf("auto", "of physics tasks; auto = device", source=OWN, choices=PLACEMENTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    prefix, source = "model.", DREAMER
    size: str = leaf("auto", "in parameters; auto = 12m, 1m on a CPU", choices=("auto", "debug", *SIZES))
    deter: int = leaf(0, "width of the recurrent state; 0 = from model.size", "units", low=0, high=65_536)
    hidden: int = leaf(0, "width of the recurrent core; 0 = from model.size", "units", low=0, high=16_384)
    classes: int = leaf(0, "classes of each latent; 0 = from model.size", "classes", low=0, high=256)
    depth: int = leaf(0, "channels of the image layers; 0 = from model.size", "channels", low=0, high=1_024)
    units: int = leaf(0, "width of the heads; 0 = from model.size", "units", low=0, high=16_384)
    stoch: int = leaf(32, "categorical latents of a state", "latents", low=1, high=1_024)
    blocks: int = leaf(8, "independent blocks of the recurrent core", "blocks", low=1, high=1_024)
    unimix: float = leaf(0.01, "uniform share mixed into the latents' distributions", low=0, high=0.99)
    actor_unimix: float = leaf(0.0, "uniform share of a discrete policy; 0.01 in 2023", low=0, high=0.99)
    bins: int = leaf(255, "bins of reward and value; odd, so that one is 0", "bins", low=3, high=4_095)
    compute_dtype: str = leaf("auto", "activations; auto = bfloat16, float32 on a CPU", choices=DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    prefix, source = "loss.", DREAMER
    rec: float = leaf(1.0, "scale of the reconstruction loss", low=0)
    rew: float = leaf(1.0, "scale of the reward loss", low=0)
    con: float = leaf(1.0, "scale of the continuation loss", low=0)
    dyn: float = leaf(1.0, "scale of the loss that moves the prior to the posterior", low=0)
    rep: float = leaf(0.1, "scale of the loss that moves the posterior to the prior", low=0)
    policy: float = leaf(1.0, "scale of the policy loss", low=0)
    value: float = leaf(1.0, "scale of the value loss on imagined states", low=0)
    repval: float = leaf(0.3, "scale of the value loss on replayed states", low=0)
    free_nats: float = leaf(1.0, "divergence of a step below which dyn and rep are constant", "nats", low=0)
    contdisc: bool = leaf(True, "the continuation head predicts the discount too")
    horizon: int = leaf(15, "imagined steps from each replayed state", "agent_steps", low=1, high=1_000)
    discount_horizon: float = leaf(333.0, "h of the discount 1 - 1/h", "agent_steps", low=1)
    lam: float = leaf(0.95, "lambda of the lambda-return", low=0, high=1)
    entropy: float = leaf(3e-4, "scale of the policy's entropy bonus", "1 / nats", low=0)
    return_rate: float = leaf(0.01, "rate of the return percentiles", "1 / updates", low=1e-6, high=1)
    return_low: float = leaf(5.0, "lower percentile of returns", "percent", low=0, high=100)
    return_high: float = leaf(95.0, "upper percentile of returns", "percent", low=0, high=100)
    return_limit: float = leaf(1.0, "smallest scale that returns are divided by", "reward", low=1e-8)
    slow_rate: float = leaf(0.02, "rate of the slow critic", "1 / updates", low=1e-6, high=1)
    slow_reg: float = leaf(1.0, "scale of the critic's pull to the slow critic", low=0)
    slow_target: bool = leaf(False, "returns bootstrap from the slow critic")
    reward_grad: bool = leaf(True, "the reward loss shapes the world model")
    repval_grad: bool = leaf(True, "the value loss on replayed states shapes the world model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptConfig(Section):
    prefix, source = "opt.", DREAMER
    name: str = leaf("laprop", "optimizer", choices=("laprop", "adam"))
    lr: float = leaf(4e-5, "learning rate after the warm-up", low=0, high=1)
    agc: float = leaf(0.3, "largest gradient norm of a tensor over its own norm; 0 = off", low=0)
    agc_min: float = leaf(1e-3, "smallest norm of a tensor that opt.agc assumes", low=1e-8)
    clip: float = leaf(0.0, "largest gradient norm of all tensors together; 0 = off", low=0)
    beta1: float = leaf(0.9, "decay of the momentum", low=0, high=0.999999)
    beta2: float = leaf(0.999, "decay of the mean square", low=0, high=0.999999)
    eps: float = leaf(1e-20, "added to the root of the mean square", low=1e-30)
    warmup: int = leaf(1_000, "length of the linear warm-up from 0", "updates", low=0)
    anneal: int = leaf(0, "when a cosine reaches a tenth of opt.lr; 0 = constant", "updates", low=0)
    weight_decay: float = leaf(0.0, "decoupled weight decay of kernels", "1 / updates", low=0)
    max_skipped: int = leaf(20, "skipped in a row, not being finite, that end the run", "updates", OWN, low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrqConfig(Section):
    prefix, source = "drq.", DRQ
    stack: int = leaf(3, "newest frames that a network sees together", "frames", low=1, high=16)
    nstep: int = leaf(3, "rewards before the value that a target adds", "agent_steps", low=1, high=100)
    discount: float = leaf(0.99, "of a reward one decision later", low=0, high=1)
    tau: float = leaf(0.01, "rate of the target critic", "1 / updates", low=1e-6, high=1)
    channels: int = leaf(32, "channels of the convolutions", "channels", low=1, high=1_024)
    features: int = leaf(50, "width between the encoder and the heads", "units", low=1, high=65_536)
    hidden: int = leaf(1_024, "width of actor and critic", "units", low=1, high=65_536)
    shift: int = leaf(4, "largest random shift of an image", "pixels", low=0, high=64)
    intensity: float = leaf(0.0, "spread of the random brightness of an image", low=0, high=1)
    random_steps: int = leaf(2_000, "uniformly random actions first", "agent_steps", low=0)
    noise_start: float = leaf(1.0, "exploration at the start: deviation, or epsilon", low=0, high=1)
    noise_end: float = leaf(0.1, "exploration in the end", low=0, high=1)
    noise_steps: int = leaf(500_000, "length of the linear schedule between them", "agent_steps", low=1)
    noise_clip: float = leaf(0.3, "largest noise of a target's or an actor's action", low=0)
    saturation: float = leaf(0.0, "weight of a penalty on means near their bounds", source=OWN, low=0)
    eval_noise: float = leaf(0.0, "epsilon of discrete actions in evaluations", low=0, high=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(Section):
    prefix = "replay."
    capacity: int = leaf(1_000_000, "rows over all environments", "agent_steps", "DreamerV3 2023", low=1)
    budget_gb: float = leaf(0.0, "memory that replay may take; 0 = half of its device's", "GB", low=0)
    placement: str = leaf("device", "memory that holds replay", choices=("device", "host"))
    context: bool = leaf(True, "sequences start from stored latents; false = from zeros", source=DREAMER)
    online: bool = leaf(True, "the newest sequences are trained on first, once each", source=DREAMER)
    holdout: float = leaf(0.0, "share of episodes kept out of training and reported", low=0, high=0.5)
    save_episodes: bool = leaf(False, "write training episodes to episodes/ as npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    prefix = "eval."
    num_envs: int = leaf(0, "in parallel; 0 = eval_eps or 8, the smaller", "environments", low=0, high=65_536)
    mode: str = leaf("sample", "drawn or likeliest actions", source=DREAMER, choices=("sample", "mode"))
    samples: int = leaf(0, "first ones of an evaluation kept in episodes/", "episodes", low=0, high=100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    prefix = "checkpoint."
    enabled: bool = leaf(True, "save checkpoints, and continue from them")
    replay: bool = leaf(True, "store replay too; without it a continued run fills it anew")
    keep: int = leaf(2, "newest checkpoints kept", "checkpoints", low=1, high=1_000)
    best_metric: str = leaf("eval_episode/avg_score", "metric of the best checkpoint; successes first")
    periodic_every: int = leaf(0, "period of lasting checkpoints; 0 = never", "env_steps", low=0)
    periodic_keep: int = leaf(0, "newest of them kept; 0 = all", "checkpoints", low=0, high=1_000_000)
    failures: int = leaf(5, "failed saves in a row that end the run", "saves", low=1, high=1_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Section):
    prefix = "runtime."
    compile_cache: str = leaf("auto", "folder of compiled programs; auto = a folder of ours", "path")
    devices: int = leaf(
        0, "share each batch; 0 = all GPUs or TPUs, one CPU a process", "devices", low=0, high=1024
    )
    population: str = leaf(
        "auto", "one program for all members, or in turn", choices=("auto", "joint", "turns")
    )
    mem_fraction: float = leaf(0.0, "GPU memory taken at start; 0 = as JAX decides", low=0, high=0.99)
    matmul_precision: str = leaf("default", "of float32 products", choices=("default", "high", "highest"))
    debug_nans: bool = leaf(False, "stop at the operation that makes a NaN; slow")
    transfer_guard: bool = leaf(True, "implicit transfers to and from devices are errors", source=DREAMER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig(Section):
    prefix = "distributed."
    coordinator: str = leaf("", "HOST:PORT of process 0; auto = what the cluster says; empty = one process")
    processes: int = leaf(0, "of the run together; 0 = as the cluster says", "processes", low=0, high=65_536)
    process: int = leaf(-1, "this one, from 0; -1 = as the cluster says", "number", low=-1, high=65_535)
    timeout_s: float = leaf(300.0, "for all of them to find each other", "seconds", low=1, high=86_400)
    heartbeat_s: float = leaf(60.0, "silence after which a process is lost", "seconds", low=1, high=3_600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebugConfig(Section):
    prefix = "debug."
    fault: str = leaf("", "fault to inject, KIND@PLACE[:NUMBER], for tests; see BUILD_NOTES.md")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A whole run. Rules between settings are checked when it is made."""

    agent: str = leaf("dreamer", "learner; random learns nothing", choices=("dreamer", "drq", "random"))
    task: str = leaf("atari_pong", "suite and task, as atari_pong", source=BENCHMARK)
    steps: int = leaf(400_000, "length of the run", "env_steps", BENCHMARK, low=1)
    seed: int = leaf(0, "seed of everything random", low=0, high=1_000_000_000)
    seeds: str = leaf("", "of a population, trained in one process: 0,1,2 or 0-4; each has its own folder")
    tasks: str = leaf("", "of a population: atari_pong,atari_breakout; with seeds, each task with each")
    batch_size: int = leaf(16, "sequences or transitions of an update", "items", DREAMER, low=1, high=65_536)
    batch_length: int = leaf(64, "rows of a sequence; not of drq", "agent_steps", DREAMER, low=2, high=65_536)
    train_ratio: float = leaf(256.0, "replayed agent_steps per collected one", source=DREAMER, low=0)
    warmup: int = leaf(0, "wait before the first update; 0 = for one sequence", "agent_steps", low=0)
    overlap: bool = leaf(False, "act with the parameters before the newest update, while it is computed")
    log_every: int = leaf(2_000, "period of metrics; 0 = never", "env_steps", low=0)
    eval_every: int = leaf(40_000, "period of evaluations; 0 = never", "env_steps", low=0)
    eval_eps: int = leaf(10, "episodes of an evaluation", "episodes", low=1, high=100_000)
    eval_initial: bool = leaf(False, "evaluate at step 0 too", source="DreamerV3 2023 atari100k")
    video_every: int = leaf(0, "period of films (an evaluation, imagination); 0 = never", "env_steps", low=0)
    save_every: int = leaf(0, "period of checkpoints; 0 = by save_seconds only", "env_steps", low=0)
    save_seconds: float = leaf(900.0, "period of checkpoints in time; 0 = never", "seconds", DREAMER, low=0)
    live: bool = leaf(False, "show plots/live.png in a window that follows the run")
    profile: str = leaf("", "A:B traces the updates from A to B for XProf and TensorBoard", "updates")
    benchmark_at_end: bool = leaf(False, "measure how fast a finished run's updates are, into benchmarks/")
    logdir: str = leaf("", "run directory; empty = runs/<config>/<task>-<time>-<seed>", "path")
    resume_from: str = leaf("", "run or checkpoint that a new run goes on from, with its steps", "path")
    init_from: str = leaf("", "run or checkpoint that a new run takes parameters from", "path")
    init_filter: str = leaf(".*", "regular expression; parameters in whose name it is found are taken")
    allow_config_change: bool = leaf(False, "continue a run with settings that change what it is")
    device: str = leaf("auto", "error if a named one is missing", choices=("auto", "cpu", "gpu", "tpu"))
    env: EnvConfig = EnvConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    opt: OptConfig = OptConfig()
    drq: DrqConfig = DrqConfig()
    replay: ReplayConfig = ReplayConfig()
    eval: EvalConfig = EvalConfig()
    terminal: TerminalConfig = TerminalConfig()
    tensorboard: TensorboardConfig = TensorboardConfig()
    plot: PlotConfig = PlotConfig()
    wandb: WandbConfig = WandbConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    distributed: DistributedConfig = DistributedConfig()
    debug: DebugConfig = DebugConfig()

    def __post_init__(self):
        super().__post_init__()
        for field in dataclasses.fields(self):
            if not field.metadata and type(getattr(self, field.name)) is not type(field.default):
                raise ConfigError(
                    f"{field.name}: must be a section; write {type(field.default).__name__}(...)"
                )
        for name, rule, example in _broken(self):
            raise ConfigError(
                f"{name}={show(leaves(self)[name].value)}: must be {rule}; for example {example}"
            )


def leaves(config: Config) -> dict[str, Leaf]:
    """Every setting by dotted name: the top level first, then section by section."""
    found = leaves_of(config)
    for field in dataclasses.fields(config):
        if not field.metadata:
            found |= leaves_of(getattr(config, field.name))
    return found


def replace(config: Config, changes: Mapping[str, Value]) -> Config:
    """The config with some settings changed, by dotted name: `replace(config, {"replay.capacity": 5})`."""
    known, parts = leaves(config), {"": {}}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"{name}={show(value)}: unknown setting; {nearest(name, known)}")
        section, _, field = name.rpartition(".")
        parts.setdefault(section, {})[field] = value
    changed = parts.pop("")
    for section, values in parts.items():
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **changed)


def to_dict(config: Config) -> dict[str, Value]:
    """Flat {dotted name: value}, as config.json holds it."""
    return {name: item.value for name, item in leaves(config).items()}


def from_dict(values: Mapping[str, Value]) -> Config:
    """Inverse of `to_dict`: a missing name has its default, an unknown one is a ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"config={show(values)}: must be a mapping of setting names to values")
    return replace(Config(), values)


def difference(a: Config, b: Config) -> dict[str, tuple[Value, Value]]:
    """{dotted name: (value in a, value in b)} where they differ."""
    other = to_dict(b)
    return {name: (value, other[name]) for name, value in to_dict(a).items() if value != other[name]}


def model_widths(model: ModelConfig) -> Widths:
    """Widths of a model of resolved size: h = U = D/8, C = depth = D/128; explicit ones win."""
    if model.size == "auto":
        raise ConfigError("model.size=auto: has no widths yet; resolve it to a size first")
    base = DEBUG_WIDTHS
    if width := SIZES.get(model.size):
        base = Widths(width, width // 8, width // 128, width // 128, width // 8)
    widths = Widths(*(getattr(model, name) or value for name, value in base._asdict().items()))
    for name, total in (("the recurrent width", widths.deter), ("4 * the image depth", 4 * widths.depth)):
        if total % model.blocks:
            raise ConfigError(
                f"model.blocks={model.blocks}: must divide {name} = {total}; for example model.blocks=1"
            )
    return widths


def _broken(c: Config) -> Iterator[tuple[str, str, str]]:
    """(name, rule, setting that would do) of each broken rule that is more than a range."""
    size, limit, repeat = c.env.size, c.env.time_limit, c.env.action_repeat
    rows = c.replay.capacity // c.env.num_envs
    if c.agent == "drq":
        if c.replay.holdout:
            yield "replay.holdout", "0 with agent=drq, which has no held-out loss", "replay.holdout=0"
        need = (c.drq.stack + c.drq.nstep) * c.env.num_envs
        if c.replay.capacity < need:
            rule = f"at least {need}, drq.stack + drq.nstep rows of each environment"
            yield "replay.capacity", rule, f"replay.capacity={need}"
    elif rows < c.batch_length + 1:
        kept = f"the {rows} rows of each environment (replay.capacity / env.num_envs)"
        yield "batch_length", f"less than {kept}", f"replay.capacity={(c.batch_length + 1) * c.env.num_envs}"
    if len(c.task) > 64 or not re.fullmatch("[a-z0-9]+_[a-z0-9_]+", c.task):
        yield "task", "suite_task in small letters, at most 64 of them", "task=atari_pong"
    if c.agent == "dreamer" and (size % 16 or not 48 <= size <= 256):
        yield "env.size", "a multiple of 16 from 48 to 256 with agent=dreamer", "env.size=64"
    if 0 < limit < repeat:
        yield "env.time_limit", f"0 or at least env.action_repeat={repeat}", "env.time_limit=0"
    if c.model.bins % 2 == 0:
        yield "model.bins", "odd, so that one bin is 0", f"model.bins={c.model.bins + 1}"
    if c.loss.return_low >= c.loss.return_high:
        yield "loss.return_low", f"below loss.return_high={c.loss.return_high}", "loss.return_low=5"
    if 0 < c.opt.anneal <= c.opt.warmup:
        yield "opt.anneal", f"0 or above opt.warmup={c.opt.warmup}", "opt.anneal=0"
    a, colon, b = c.profile.partition(":")
    if c.profile and not (colon and re.fullmatch("[0-9]{1,12}", a) and re.fullmatch("[0-9]{1,12}", b)):
        yield "profile", "A:B, numbers of updates", "profile=100:110"
    elif c.profile and int(a) >= int(b):
        yield "profile", "A:B with A below B", f"profile={int(a)}:{int(a) + 10}"
    if not c.runtime.compile_cache:
        yield "runtime.compile_cache", "auto, off or a folder", "runtime.compile_cache=auto"
    for name, pattern in (("terminal.filter", c.terminal.filter), ("init_filter", c.init_filter)):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield name, f"a regular expression ({error})", f"{name}=.*"
    if c.seeds and not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*", c.seeds):
        yield "seeds", "numbers and ranges of them, separated by commas", "seeds=0-4"
    if c.tasks and not re.fullmatch("[a-z0-9_]+(,[a-z0-9_]+)*", c.tasks):
        yield "tasks", "names of tasks, separated by commas", "tasks=atari_pong,atari_breakout"
    if c.resume_from and c.init_from:
        yield "init_from", "empty beside resume_from", "init_from="
    model_widths(dataclasses.replace(c.model, size="1m") if c.model.size == "auto" else c.model)
