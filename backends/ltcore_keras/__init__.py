"""ltcore's Keras backend. This module is data: importing it does not import keras."""

from collections.abc import Iterable

from ltcore.hookspecs import BackendSpec, hookimpl


@hookimpl
def ltcore_register_backends() -> Iterable[BackendSpec]:
    """Offer the Keras backend."""
    return [
        BackendSpec(
            "keras",
            "ltcore_keras._backend:KerasBackend",
            "keras.Model in fit or in any training loop",
            requires=("keras",),
            install="pip install 'ltcore[tensorflow]'",
            roots=("keras",),
        )
    ]
