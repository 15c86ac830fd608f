"""ltcore's JAX backend, for Flax NNX. This module is data: importing it does not import jax."""

from collections.abc import Iterable

from ltcore.hookspecs import BackendSpec, hookimpl


@hookimpl
def ltcore_register_backends() -> Iterable[BackendSpec]:
    """Offer the JAX backend."""
    return [
        BackendSpec(
            "jax",
            "ltcore_jax._backend:JaxBackend",
            "flax.nnx.Module trained with nnx.Optimizer (optax)",
            requires=("jax", "flax", "optax"),
            install="pip install 'ltcore[flax]'",
            roots=("flax",),
        )
    ]
