"""What ltcore itself offers, through its own door."""

from collections.abc import Iterable, Iterator

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
    """Offer the criteria that need weights only, and those around another criterion."""
    return [*_weight_criteria(), *_wrapped_criteria()]


def _weight_criteria() -> Iterator[Spec]:
    home = "ltcore.weight_criteria"
    for name, summary in {
        "magnitude": "|w| after training",
        "random": "uniform scores: the random-mask control",
        "large_final": "|final|: magnitude, by its name in Zhou et al. 2019",
        "small_final": "-|final|",
        "large_init": "|init|",
        "small_init": "-|init|",
        "large_init_large_final": "large at both ends: the smaller of the two quantiles",
        "small_init_small_final": "small at both ends: the smaller of the two quantiles",
        "magnitude_increase": "|final| - |init|",
        "movement": "|final - init|",
    }.items():
        yield Spec(name, f"{home}:{name}", summary)


def _wrapped_criteria() -> Iterator[Spec]:
    home = "ltcore.wrapped_criteria"
    for base in ("large_final", "magnitude_increase"):
        for sign in ("same", "different"):
            name = f"{base}_{sign}_sign"
            yield Spec(name, f"{home}:{name}", f"{base}, first those of {sign} sign as initially")
    yield Spec("same_sign", f"{home}:SameSign", "around another: changed signs go first")
    yield Spec(
        "different_sign", f"{home}:DifferentSign", "around another: unchanged signs go first"
    )
    yield Spec("inverted", f"{home}:Inverted", "around another: keep what it prunes first")
    yield Spec("shuffled", f"{home}:Shuffled", "around another: its counts, other weights")


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
        Spec("uniform", "ltcore.shares:uniform", "the same sparsity in every parameter"),
        Spec("erk", "ltcore.shares:Erk", "density as sum(dims) / prod(dims)"),
        Spec("smart-ratio", "ltcore.shares:SmartRatio", "density falls with depth"),
        Spec("keep-dense", "ltcore.guards:KeepDense", "around another: first and last stay dense"),
        Spec("floor", "ltcore.guards:Floor", "around another: survivors in every parameter"),
    ]


@hookimpl
def ltcore_register_patterns() -> Iterable[Spec]:
    """Offer the shapes of sparsity."""
    return [
        Spec("n:m", "ltcore.nm_pattern:NM", "n of every m along the inputs; type 2:4, 4:8, ..."),
        Spec("block", "ltcore.unit_patterns:Block", "tiles over outputs and inputs"),
        Spec("channel", "ltcore.unit_patterns:Channel", "output channels and neurons"),
        Spec("input-channel", "ltcore.unit_patterns:InputChannel", "input channels and features"),
    ]
