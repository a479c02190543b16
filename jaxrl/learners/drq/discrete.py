"""DrQ for discrete actions: double DQN with a dueling network, n-step targets and augmented pixels.

Source: Kostrikov et al. 2020, "Image Augmentation Is All You Need" (DrQ), with the schedule of DrQ(eps),
Agarwal et al. 2021, in the form of dopamine labs/atari_100k (one augmentation of each observation, Huber
loss). Different here: a shift may be as far as 4 pixels in each direction, as in the paper (dopamine's reach
from -4 to 3), and the target network may follow slowly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxrl.config import Config
from jaxrl.learners.drq import shared
from jaxrl.learners.drq.shared import DrqCarry, DrqState, Learned
from jaxrl.learners.optimizer import Optimizer, make_optimizer
from jaxrl.nets import drq as nets
from jaxrl.types import (
    ActOutput,
    Discrete,
    Horizon,
    Key,
    Learner,
    Params,
    Spaces,
    Step,
    Transitions,
    UpdateOutput,
)

ALLOWED = "allowed"  # beside the networks in parameters for acting: [A] bool


@dataclasses.dataclass(frozen=True)
class DrqEps:
    """The functions of the bundle, bound to one config and one set of spaces."""

    config: Config
    spaces: Spaces

    @functools.cached_property
    def actions(self) -> int:
        assert isinstance(self.spaces.action, Discrete)
        return self.spaces.action.n

    @functools.cached_property
    def encoder(self) -> nets.Encoder:
        dtype = jnp.dtype(self.config.model.compute_dtype)
        return nets.Encoder(self.spaces.obs, self.config.drq.channels, dtype, nature=True)

    @functools.cached_property
    def critic(self) -> nets.Dueling:
        drq, dtype = self.config.drq, jnp.dtype(self.config.model.compute_dtype)
        return nets.Dueling(drq.features, drq.hidden, self.actions, dtype)

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        return make_optimizer(self.config.opt)

    def init(self, key: Key) -> DrqState:
        key_encoder, key_critic = jax.random.split(key)
        obs = {k: jnp.zeros((1, *spec.shape), spec.dtype) for k, spec in self.spaces.obs.items()}
        obs |= self.initial_carry(1).frames
        encoder = nets.initial(self.encoder, key_encoder, obs)
        seen = nets.run(self.encoder, encoder, obs)
        params = {"encoder": encoder, "critic": nets.initial(self.critic, key_critic, seen)}
        opt = {"critic": self.optimizer.init(params)}
        slow = jax.tree.map(jnp.copy, params)
        return DrqState(params=params, slow=slow, opt=opt, allowed=self.spaces.allowed)

    def initial_carry(self, n: int) -> DrqCarry:
        return shared.initial_carry(self.spaces, self.config.drq.stack, n)

    def noise(self, agent_steps: jax.Array) -> jax.Array:
        """Chance of a random action at that time: certain in the random phase, then by the schedule."""
        drq = self.config.drq
        after = shared.linear(drq.noise_start, drq.noise_end, drq.noise_steps, agent_steps - drq.random_steps)
        return jnp.where(agent_steps < drq.random_steps, 1.0, after)

    def values(self, p: Params, obs: dict[str, jax.Array]) -> jax.Array:
        """[B, A] of each action."""
        return nets.run(self.critic, p["critic"], nets.run(self.encoder, p["encoder"], obs))

    def best(self, q: jax.Array, allowed: jax.Array | None) -> jax.Array:
        """[B] i32, the action of the largest of [B, A] values, among those that may be taken."""
        q = q if allowed is None else jnp.where(allowed, q, -jnp.inf)
        return q.argmax(-1).astype(jnp.int32)

    def act(self, p: Params, carry: DrqCarry, step: Step, key: Key, mode: str) -> ActOutput:
        """The best action, or a random one: by the schedule in "train", with the chance `drq.eval_noise` in
        "mode" and `drq.noise_end` in "sample"."""
        key_whether, key_which = jax.random.split(key)
        drq, steps = self.config.drq, shared.decided(carry)
        obs, carry = shared.see(carry, step)
        allowed = p.get(ALLOWED)
        best = self.best(self.values(p, obs), allowed)
        chance = {"mode": drq.eval_noise, "sample": drq.noise_end}
        chance = chance[mode] if mode in chance else self.noise(steps)
        legal = self.actions if allowed is None else allowed.sum()
        which = jax.random.randint(key_which, best.shape, 0, legal)
        whether = jax.random.uniform(key_whether, best.shape) < chance
        return ActOutput(jnp.where(whether, which, best), carry, ())

    def loss(self, p: Params, obs: dict[str, jax.Array], action: jax.Array, target: jax.Array):
        """Mean Huber loss of the actions' values (quadratic up to errors of 1); and these, [B]."""
        q = jnp.take_along_axis(self.values(p, obs), action[:, None], 1)[:, 0]
        return optax.huber_loss(q, target).mean(), q

    def learn(self, state: DrqState, batch: Transitions, key: Key) -> Learned:
        """One update: the online network says which action is next, the target network what it is worth.

            y = R + discount * Q'(s', argmax_a Q(s', a))

        Both see the same augmented s'.
        """
        key_obs, key_next = jax.random.split(key)
        drq, params = self.config.drq, state.params
        next_obs = shared.augmented(batch.next_obs, key_next, drq)
        next_q = self.values(params, next_obs)
        # With tau = 1 the target network is the online one of this moment: no need to run it.
        judged = next_q if drq.tau == 1 else self.values(state.slow, next_obs)
        best = jnp.take_along_axis(judged, self.best(next_q, state.allowed)[:, None], 1)[:, 0]
        target = jax.lax.stop_gradient(batch.reward + batch.discount * best)
        obs = shared.augmented(batch.obs, key_obs, drq)
        (loss, q), grads = jax.value_and_grad(self.loss, has_aux=True)(params, obs, batch.action, target)
        critic = self.optimizer.descend(grads, state.opt["critic"], params, jnp.isfinite(loss))
        slow = shared.polyak(state.slow, critic.params, drq.tau, critic.made)
        return Learned(
            state=state.replace(params=critic.params, slow=slow, opt={"critic": critic.state}),
            finite=critic.made,
            losses={"critic": loss},
            grads=grads,
            stats=critic.stats,
            scalars={"q": q.mean(), "target": target.mean()},
            noise=self.noise(batch.agent_steps),
        )

    def update(self, state: DrqState, batch: Transitions, key: Key) -> UpdateOutput:
        """One gradient step, skipped (and counted) if its loss or gradient is not finite.

        Args:
          state: donated by the caller; do not use it afterwards.
          batch: leaves [B, ...]; images u8 [B, h, w, stack * c], reward f32, clipped if the config says so.
          key: consumed.
        """
        return shared.update(self.learn, self.config, state, batch, key)

    def explain(self, state: DrqState, batch: Transitions, key: Key) -> dict[str, jax.Array]:
        """The numbers of such an update by name."""
        return shared.explain(self.learn, state, batch, key)


def policy_params(state: DrqState) -> Params:
    """The networks, and beside them which actions may be taken, where tasks share a set of them."""
    return dict(state.params) if state.allowed is None else state.params | {ALLOWED: state.allowed}


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle for a resolved config and the spaces of a task with discrete actions."""
    nets.split_keys(spaces.obs)
    learner = DrqEps(config, spaces)
    return Learner(
        init=learner.init,
        initial_carry=learner.initial_carry,
        act=learner.act,
        update=learner.update,
        explain=learner.explain,
        policy_params=policy_params,
        latent_zeros=lambda: (),
        horizon=Horizon(stack=config.drq.stack, nstep=config.drq.nstep, discount=config.drq.discount),
    )
