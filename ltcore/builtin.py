"""What ltcore itself offers, through its own door."""

from collections.abc import Iterable

from ltcore.hookspecs import BackendSpec, Spec, hookimpl


@hookimpl
def ltcore_register_backends() -> Iterable[BackendSpec]:
    """Offer the numpy reference backend."""
    return [
        BackendSpec(
            "numpy",
            "ltcore.testing.reference:ReferenceBackend",
            "slow and obvious; the conformance suite's reference",
            roots=("ltcore",),
        )
    ]


@hookimpl
def ltcore_register_criteria() -> Iterable[Spec]:
    """Offer the criteria that need weights only."""
    return [
        Spec("magnitude", "ltcore.weight_criteria:magnitude", "|w| after training"),
        Spec("random", "ltcore.weight_criteria:random", "uniform scores: the random-mask control"),
    ]


@hookimpl
def ltcore_register_rewind_policies() -> Iterable[Spec]:
    """Offer the policies; a step is given as a number, too."""
    points, draws = "ltcore.rewind_points:", "ltcore.rewind_draws:"
    return [
        Spec("initialization", f"{points}ToStep.initialization", "back to step 0"),
        Spec("step", f"{points}ToStep", "back to a step"),
        Spec("epoch", f"{points}ToStep.epoch", "back to epoch, of steps_per_epoch"),
        Spec("fraction", f"{points}ToStep.fraction", "back to a fraction of steps"),
        Spec("trained", f"{points}KeepTrained", "keep trained weights (fine-tuning)"),
        Spec("learning-rate", f"{points}LearningRateRewind", "keep weights, schedule back to step"),
        Spec("reinit", f"{draws}RandomReinit", "draw anew: the reinit control; keep_sign"),
        Spec("resample", f"{draws}Resample", "from survivors' initial values; keep_sign, replace"),
        Spec("constant", f"{draws}LayerConstant", "one size a layer; sign kept or random"),
        Spec("noise", f"{draws}RewindNoise", "rewind point (step) with noise of scale"),
    ]


@hookimpl
def ltcore_register_schedules() -> Iterable[Spec]:
    """Offer the schedules."""
    return [
        Spec("constant", "ltcore.schedules:ConstantRate", "the same rate every round"),
        Spec("to-sparsity", "ltcore.schedules:ToSparsity", "a sparsity in n equal steps"),
        Spec("one-shot", "ltcore.schedules:OneShot", "a sparsity in one pruning"),
        Spec("polynomial", "ltcore.schedules:Polynomial", "a sparsity, fast at first; power"),
    ]


@hookimpl
def ltcore_register_allocations() -> Iterable[Spec]:
    """Offer the scopes."""
    return [
        Spec("global", "ltcore.allocation:by_global", "all parameters compete"),
        Spec("layer", "ltcore.allocation:by_layer", "each parameter loses its own share"),
    ]
