"""Atari through EnvPool: the Atari-100k protocol and its variants.

What an episode is (checked against EnvPool's source and by the tests):
  * Start: the console is reset, then 1 to `noops` frames of NOOP pass (dreamerv3: 0 to `noops`), or
    0 to `noops`-1 and one FIRE with `fire_reset`, in games that have it. `noops=0` still means one frame.
    These frames count neither as env_steps nor towards the time limit.
  * Step: the action is held for `action_repeat` frames, fewer where the game ends; the reward is their
    sum. The picture is the larger of the last two frames, pixel by pixel, then shrunk by area averaging
    (dreamerv3: Pillow's antialiased bilinear). Where the game ends in the first `action_repeat` - 2
    frames, the last picture repeats the one before; in the frame after these, it is not pooled.
  * End: `is_terminal` when the game is over; `is_last` alone when `time_limit` cuts it. The limit is
    rounded up to whole steps.
  * A run resumed from a checkpoint begins new episodes: EnvPool cannot save its state.

Lost lives (`lives`) are read from the life counter here, not by EnvPool's two options:
`zero_discount_on_life_loss` also zeroes the discount when a life is won and at the time limit, and
`episodic_life` plays up to `noops` frames after every loss whose rewards are lost, and in which the
game may end and start again unseen.
  * "unused": nothing. The benchmark.
  * "discount": the row has `is_terminal` without `is_last`: its value is zero and the episode goes on.
  * "terminal": the row ends the episode. The game goes on: one NOOP step leads to the `is_first` row.
    `fire_reset` presses FIRE at the start of a game only.
A score is that of the whole game all the same: see `outcome`.
"""

import numpy as np

from jaxrl.config import ConfigError, EnvConfig
from jaxrl.envs.base import Outcome, Seed
from jaxrl.envs.games import envpool_id
from jaxrl.envs.pool import PoolEnv, open_pool
from jaxrl.types import ArraySpec, Discrete, Spaces, Step

NOOP = 0  # the first action of every game, also of the minimal sets
LONGEST = 2**31 - 2  # EnvPool adds 1 to its limit in an int32


def pool_options(env: EnvConfig) -> dict[str, int | float | bool]:
    """Every option of EnvPool's Atari but those of the pool itself (see pool.open_pool)."""
    steps = -(-env.time_limit // env.action_repeat)
    return dict(
        max_episode_steps=min(steps, LONGEST) if env.time_limit else LONGEST,  # agent_steps
        stack_num=1,  # stacked here: see FrameStack
        frame_skip=env.action_repeat,
        noop_max=max(env.noops, 1),  # 0 is undefined in EnvPool
        zero_discount_on_life_loss=False,  # see above
        episodic_life=False,  # see above
        reward_clip=env.clip_reward,
        use_fire_reset=env.fire_reset,
        img_height=env.size,
        img_width=env.size,
        mode=-1,  # the cartridge's own
        difficulty=-1,
        full_action_space=env.full_actions,
        repeat_action_probability=env.sticky,  # per frame
        use_inter_area_resize=True,  # plain bilinear would skip pixels: 210x160 shrinks 3-fold
        gray_scale=env.gray,
    )


class AtariEnv(PoolEnv):
    """N Atari games of one kind. obs: {"image": u8 [N, size, size, channels]}, newest frame last."""

    def __init__(self, game: str, env: EnvConfig, *, num_envs: int, seed: Seed):
        pool = open_pool(
            envpool_id(game), num_envs=num_envs, seed=seed, threads=env.threads, options=pool_options(env)
        )
        channels = env.stack * (1 if env.gray else 3)
        image = ArraySpec((env.size, env.size, channels), np.dtype(np.uint8))
        own = int(pool.action_space.n)
        if 0 < env.actions < own:
            pool.close()
            raise ConfigError(
                f"env.actions={env.actions}: atari_{game} has {own}; use --env.actions={own} or more"
            )
        action = Discrete(env.actions, own) if env.actions else Discrete(own)
        spaces = Spaces(obs={"image": image}, action=action)
        super().__init__(pool, spaces, num_envs=num_envs, action_repeat=env.action_repeat)
        self._mode = env.lives
        self._stack = FrameStack((num_envs, *image.shape), env.stack) if env.stack > 1 else None
        self._lives = np.zeros(num_envs, np.int32)
        self._is_last = np.zeros(num_envs, bool)

    def _start(self) -> Step:
        self._request_reset()
        self._is_last = np.ones(self.num_envs, bool)
        return self._collect()

    def _launch(self, action: np.ndarray) -> None:
        if self._mode == "terminal":
            action[self._is_last] = NOOP  # the game may go on after an `is_last` row, and must not act there
        super()._launch(action)

    def _collect(self) -> Step:
        rows, at = self._pool._recv(), self._at
        is_first, is_last = self._is_last, rows[at["done"]]
        is_terminal = rows[at["info:terminated"]] != 0
        reward = rows[at["reward"]]
        self._outcome = Outcome(rows[at["info:reward"]], is_last)
        if self._mode != "unused":
            lives = rows[at["info:lives"]]
            lost = (lives > 0) & (lives < self._lives) & ~is_first  # at 0 lives the game is over anyway
            self._lives = lives
            is_terminal = is_terminal | lost
            if self._mode == "terminal":
                is_last = is_last | lost
                reward = np.where(is_first, np.float32(0), reward)
        self._is_last = is_last.copy()
        frames = rows[at["obs"]]
        image = channels_last(frames) if self._stack is None else self._stack.push(frames, is_first)
        return Step(
            obs={"image": image}, reward=reward, is_first=is_first, is_last=is_last, is_terminal=is_terminal
        )


class FrameStack:
    """The newest frames of N environments as channels, oldest first. A first row fills it with itself.

    Stacking here costs a third of transposing EnvPool's [N, stack, h, w], since in [N, h, w, stack] all
    but one channel move up by a shift of the whole memory. Unlike EnvPool's, it never shows frames from
    before an `is_first` row.
    """

    def __init__(self, shape: tuple[int, ...], stack: int):
        self._images = np.zeros(shape, np.uint8)  # [N, h, w, stack * c]
        self._c = shape[-1] // stack

    def push(self, frames: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """frames: [N, c, h, w] u8; is_first: [N] bool. Returns [N, h, w, stack * c] u8, the caller's own."""
        images, c = self._images, self._c
        flat = images.reshape(-1)
        flat[:-c] = flat[c:].copy()
        for channel in range(c):
            images[..., channel - c] = frames[:, channel]
        for i in np.flatnonzero(is_first):
            images[i] = np.tile(images[i, ..., -c:], images.shape[-1] // c)
        return images.copy()


def channels_last(frames: np.ndarray) -> np.ndarray:
    """[N, C, h, w] -> [N, h, w, C], contiguous.

    Channel by channel: 4.6 us a 64x64 RGB frame, where copying a transposed view takes 11 us.
    """
    n, c, h, w = frames.shape
    if c == 1:
        return frames.reshape(n, h, w, 1)
    images = np.empty((n, h, w, c), frames.dtype)
    for channel in range(c):
        images[..., channel] = frames[:, channel]
    return images
