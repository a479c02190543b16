"""Pictures of physics tasks.

`render` and `render_batch` are a ray caster in plain JAX, for any device and inside any compiled program.
`opengl` is MuJoCo's own renderer, on the host; `warp` draws meshes on NVIDIA's GPUs. Those two are imported
where they are used.
"""

from jaxrl.envs.mjx.render.caster import Pictures, render, render_batch
from jaxrl.envs.mjx.render.scene import Look, Scene
from jaxrl.envs.mjx.render.variation import randomized

__all__ = ["Look", "Pictures", "Scene", "randomized", "render", "render_batch"]
