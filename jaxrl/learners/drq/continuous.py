"""DrQ-v2: deterministic actor and twin critic on augmented pixels, noise by a schedule.

Source: Yarats et al. 2021, "Mastering Visual Continuous Control: Improved Data-Augmented Reinforcement
Learning", and its program facebookresearch/drqv2, whose order of things within an update is kept. Different
here: a terminal state's value is zero (there its discount of 0 reads as 1).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxrl.config import Config
from jaxrl.learners.drq import shared
from jaxrl.learners.drq.shared import DrqCarry, DrqState, Learned
from jaxrl.learners.optimizer import Optimizer, make_optimizer
from jaxrl.nets import drq as nets
from jaxrl.types import (
    ActOutput,
    Horizon,
    Key,
    Learner,
    Params,
    Spaces,
    Step,
    Transitions,
    UpdateOutput,
)

POLICY = ("encoder", "actor")  # networks that acting needs
STEEP = 2.0  # where tanh(u) is 0.96 and its slope 0.07; the slope is what an actor learns through
LIMIT = 1 - 1e-6  # of an action's components, as in drqv2 utils.py


def clamp(action: jax.Array) -> jax.Array:
    """Within the bounds; the gradient is that of the identity."""
    return action + jax.lax.stop_gradient(jnp.clip(action, -LIMIT, LIMIT) - action)


@dataclasses.dataclass(frozen=True)
class DrqV2:
    """The functions of the bundle, bound to one config and one set of spaces."""

    config: Config
    spaces: Spaces

    @functools.cached_property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.compute_dtype)

    @functools.cached_property
    def encoder(self) -> nets.Encoder:
        return nets.Encoder(self.spaces.obs, self.config.drq.channels, self.dtype)

    @functools.cached_property
    def critic(self) -> nets.Critic:
        return nets.Critic(self.config.drq.features, self.config.drq.hidden, self.dtype)

    @functools.cached_property
    def actor(self) -> nets.Actor:
        drq, actions = self.config.drq, self.spaces.action.shape[0]
        return nets.Actor(drq.features, drq.hidden, actions, self.dtype)

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        return make_optimizer(self.config.opt)

    def init(self, key: Key) -> DrqState:
        key_encoder, key_critic, key_actor = jax.random.split(key, 3)
        obs = {k: jnp.zeros((1, *spec.shape), spec.dtype) for k, spec in self.spaces.obs.items()}
        obs |= self.initial_carry(1).frames
        encoder = nets.initial(self.encoder, key_encoder, obs)
        seen = nets.run(self.encoder, encoder, obs)
        critic = nets.initial(self.critic, key_critic, seen, jnp.zeros((1, *self.spaces.action.shape)))
        params = {
            "encoder": encoder,
            "critic": critic,
            "actor": nets.initial(self.actor, key_actor, seen),
        }
        opt = {
            "critic": self.optimizer.init({"encoder": encoder, "critic": critic}),
            "actor": self.optimizer.init(params["actor"]),
        }
        return DrqState(params=params, slow={"critic": jax.tree.map(jnp.copy, critic)}, opt=opt)

    def initial_carry(self, n: int) -> DrqCarry:
        return shared.initial_carry(self.spaces, self.config.drq.stack, n)

    def noise(self, agent_steps: jax.Array) -> jax.Array:
        """Deviation of exploration at that time."""
        drq = self.config.drq
        return shared.linear(drq.noise_start, drq.noise_end, drq.noise_steps, agent_steps)

    def act(self, p: Params, carry: DrqCarry, step: Step, key: Key, mode: str) -> ActOutput:
        """Modes: "train" explores, at first at random; "mode" is the mean, "sample" with `drq.noise_end`."""
        key_noise, key_random = jax.random.split(key)
        steps = shared.decided(carry)[:, None]
        obs, carry = shared.see(carry, step)
        mean = jnp.tanh(nets.run(self.actor, p["actor"], nets.run(self.encoder, p["encoder"], obs)))
        if mode == "mode":
            return ActOutput(mean, carry, ())
        noise = self.noise(steps) if mode == "train" else self.config.drq.noise_end
        action = clamp(mean + noise * jax.random.normal(key_noise, mean.shape))
        if mode == "train":
            chance = jax.random.uniform(key_random, mean.shape, minval=-1, maxval=1)
            action = jnp.where(steps < self.config.drq.random_steps, chance, action)
        return ActOutput(action, carry, ())

    def draw(self, u: jax.Array, noise: jax.Array, key: Key) -> jax.Array:
        """[B, A]: the policy's action with noise that is limited, for targets and for the actor's loss."""
        mean, limit = jnp.tanh(u), self.config.drq.noise_clip
        return clamp(mean + jnp.clip(noise * jax.random.normal(key, mean.shape), -limit, limit))

    def critic_loss(self, p: Params, obs: dict[str, jax.Array], action: jax.Array, target: jax.Array):
        """Both heads' mean squared errors, summed; and (features, values [2, B])."""
        seen = nets.run(self.encoder, p["encoder"], obs)
        q = nets.run(self.critic, p["critic"], seen, action)
        return jnp.square(q - target).mean(1).sum(), (seen, q)

    def learn(self, state: DrqState, batch: Transitions, key: Key) -> Learned:
        """One update in the order of drqv2: critic and encoder, actor, target.

            y = R + discount * min(Q'0, Q'1)(h', clamp(mu(h') + clip(sigma e, -c, c)))

        With drq.saturation, the actor's loss has a penalty on means tanh(u) with |u| > 2: where a critic that
        knows little yet drives them to the bounds, the gradient vanishes, and with it a seed.

        The actor sees the features from before the encoder moved, and is judged by the critic that has.
        """
        key_obs, key_next, key_target, key_actor = jax.random.split(key, 4)
        drq, params = self.config.drq, state.params
        noise = self.noise(batch.agent_steps)
        next_obs = shared.augmented(batch.next_obs, key_next, drq)
        next_seen = nets.run(self.encoder, params["encoder"], next_obs)
        next_action = self.draw(nets.run(self.actor, params["actor"], next_seen), noise, key_target)
        next_q = nets.run(self.critic, state.slow["critic"], next_seen, next_action).min(0)
        target = jax.lax.stop_gradient(batch.reward + batch.discount * next_q)

        both = {k: params[k] for k in ("encoder", "critic")}
        obs = shared.augmented(batch.obs, key_obs, drq)
        grad = jax.value_and_grad(self.critic_loss, has_aux=True)
        (critic_loss, (seen, q)), grads = grad(both, obs, batch.action, target)
        descend = functools.partial(self.optimizer.descend, grads, state.opt["critic"], both)
        ahead = descend(jnp.isfinite(critic_loss))

        seen = jax.lax.stop_gradient(seen)

        def actor_loss(p):
            u = nets.run(self.actor, p, seen)
            q = nets.run(self.critic, ahead.params["critic"], seen, self.draw(u, noise, key_actor)).min(0)
            excess = jnp.maximum(jnp.abs(u) - STEEP, 0)
            return drq.saturation * jnp.square(excess).sum(-1).mean() - q.mean()

        loss, actor_grads = jax.value_and_grad(actor_loss)(params["actor"])
        proceed = ahead.made & jnp.isfinite(loss)
        actor = self.optimizer.descend(actor_grads, state.opt["actor"], params["actor"], proceed)
        # Once more, as it is known now whether the actor's step is made, too: of the first time XLA makes
        # only the parameters, and to keep both and choose would be more passes over the state than this.
        critic = descend(actor.made)
        moved = critic.params
        return Learned(
            state=DrqState(
                params=moved | {"actor": actor.params},
                slow=shared.polyak(state.slow, {"critic": moved["critic"]}, drq.tau, critic.made),
                opt={"critic": critic.state, "actor": actor.state},
            ),
            finite=actor.made,
            losses={"critic": critic_loss, "actor": loss},
            grads=grads | {"actor": actor_grads},
            stats=critic.stats,
            scalars={"q": q.mean(), "target": target.mean(), "opt/actor_grad_norm": actor.stats.grad_norm},
            noise=noise,
        )

    def update(self, state: DrqState, batch: Transitions, key: Key) -> UpdateOutput:
        """One gradient step of each network, skipped (and counted) if a loss or gradient is not finite.

        Args:
          state: donated by the caller; do not use it afterwards.
          batch: leaves [B, ...]; images u8 [B, h, w, stack * c], reward f32 in env units.
          key: consumed.
        """
        return shared.update(self.learn, self.config, state, batch, key)

    def explain(self, state: DrqState, batch: Transitions, key: Key) -> dict[str, jax.Array]:
        """The numbers of such an update by name."""
        return shared.explain(self.learn, state, batch, key)


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle for a resolved config and the spaces of a task with continuous actions."""
    nets.split_keys(spaces.obs)
    learner = DrqV2(config, spaces)
    return Learner(
        init=learner.init,
        initial_carry=learner.initial_carry,
        act=learner.act,
        update=learner.update,
        explain=learner.explain,
        policy_params=lambda state: {name: state.params[name] for name in POLICY},
        latent_zeros=lambda: (),
        horizon=Horizon(stack=config.drq.stack, nstep=config.drq.nstep, discount=config.drq.discount),
    )
