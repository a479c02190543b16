"""A JAX trainer for reinforcement learning from pixels. Importing the package imports nothing else."""

__version__ = "0.1.0"
