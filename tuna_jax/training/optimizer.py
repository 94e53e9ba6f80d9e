"""The optimizer: AdamW or Muon with warm-up, clipping, selective weight decay and frozen parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Algorithm, schedule, weight decay, clipping, frozen parameters, and EMA.

    Attributes:
      algorithm: 'adamw', or 'muon': orthogonalised momentum for kernels (Jordan et al. 2024, with updates scaled to
        AdamW's, so that one learning rate fits both), AdamW for all other parameters.
      learning_rate: peak learning rate.
      warmup: number of updates of the linear warm-up from 0.
      cosine_tail: share of the run, at its end, over which the rate decays to 0 along a cosine; 0 keeps it constant.
      b1, b2, epsilon: Adam's constants.
      weight_decay: decoupled weight decay.
      decay: which parameters decay: 'weights': matrices and kernels (the stacking axis of layers does not count as an
        axis), not biases, norms and modulation offsets; 'all': every trained parameter, as in the released code.
      clip_norm: largest global norm of the gradient; 0 turns clipping off.
      frozen: parameter-path prefixes ('language', 'representation.position') that are not trained.
      trained: prefixes of the only parameters that are trained; empty: all that are not frozen. Numbers in brackets
        name
        some of the stacked layers: 'language.layers[12, 13]'.
      ema: decay of the exponential moving average of the parameters; 0 turns it off.
    """

    algorithm: str = "adamw"
    learning_rate: float = 1e-4
    warmup: int = 1000
    cosine_tail: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay: str = "weights"
    clip_norm: float = 1.0
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    ema: float = 0.9999


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """The learning-rate schedule of a run of `steps` updates.

    Raises:
      ValueError: warm-up and cosine tail are longer than the run.
    """
    return warmup_plateau_cosine(
        settings.learning_rate, steps, settings.warmup, settings.cosine_tail
    )


def build(settings: OptimizerSettings, params: Any, steps: int) -> optax.GradientTransformation:
    """The optimizer for `params` (arrays or shapes) over a run of `steps` updates.

    Frozen parameters have zero updates and no optimizer state. Clipping uses only the gradients of trained parameters.

    Raises:
      ValueError: a prefix in `settings.frozen` or `settings.trained` matches no parameter, or the schedule is longer
        than the run.
    """
    trained = trainable(params, settings.frozen, settings.trained)
    schedule = learning_rate(settings, steps)
    chain = [
        _clip(settings.clip_norm) if settings.clip_norm else optax.identity(),
        _algorithm(settings, schedule),
    ]
    if any(layers for _, layers in map(_split_layers, settings.trained)):
        # Before clipping, so that only the gradients of trained layers count; and after weight decay. Only then: it
        # changes the structure of the state, which checkpoints store.
        only = _only_layers(params, settings.trained)
        chain = [only, *chain, only]
    labels = jax.tree.map(lambda is_trained: "trained" if is_trained else "frozen", trained)
    return optax.multi_transform(
        {"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels
    )


def _clip(norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` as one factor, which XLA fuses into the update; a division would be materialised."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = norm / jnp.maximum(optax.global_norm(updates), norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _algorithm(
    settings: OptimizerSettings, schedule: optax.Schedule
) -> optax.GradientTransformation:
    if settings.algorithm == "adamw":
        return optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=_decays(settings.decay),
        )
    if settings.algorithm == "muon":
        return optax.contrib.muon(
            schedule,
            consistent_rms=0.2,
            weight_decay=settings.weight_decay,
            weight_decay_mask=_decays(settings.decay),
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            muon_weight_dimension_numbers=_matrices,
        )
    raise ValueError(f"optimizer.algorithm is {settings.algorithm!r}; choose 'adamw' or 'muon'")


def _decays(which: str) -> Callable[[Any], Any] | None:
    """The mask of weight decay; None: all parameters."""
    masks = {"weights": decayed, "all": None}
    if which not in masks:
        raise ValueError(f"optimizer.decay is {which!r}; choose one of {', '.join(masks)}")
    return masks[which]


def _matrices(params: Any) -> Any:
    """The axes of each kernel that form its matrix; None for other parameters, which Muon leaves to AdamW.

    A kernel maps all axes except the last onto the last. In stacked layers the first axis counts layers, each with
    its own matrix.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = path_name(path).split(".")
        if names[-1] != "kernel":
            return None
        first = 1 if "layers" in names else 0
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def path_name(path: tuple[Any, ...]) -> str:
    """Dotted name of a parameter: ('language', 'layers', 'query', 'kernel') is 'language.layers.query.kernel'."""
    return ".".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def trainable(params: Any, frozen: tuple[str, ...], trained: tuple[str, ...] = ()) -> Any:
    """Tree of bools like `params`: False if a path has one of the prefixes in `frozen`, or none of those in `trained`.

    A prefix matches whole names: 'language' matches 'language.embedding' and not 'language_model.embedding'. A
    parameter of which only some layers are trained is True.

    Raises:
      ValueError: a prefix matches no parameter, or a layer does not exist.
    """
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    chosen = [_split_layers(prefix) for prefix in trained]
    for key, prefixes in (("frozen", frozen), ("trained", [prefix for prefix, _ in chosen])):
        for prefix in prefixes:
            if not any(_under(name, prefix) for name in named):
                parts = sorted({name.split(".")[0] for name in named})
                raise ValueError(
                    f"config.optimizer.{key}: the prefix {prefix!r} matches no parameter; the top-level names are "
                    f"{', '.join(parts)}"
                )
    for (prefix, layers), text in zip(chosen, trained, strict=True):
        for name, leaf in named.items():
            if layers and _under(name, prefix) and max(layers) >= leaf.shape[0]:
                raise ValueError(
                    f"config.optimizer.trained: {text!r} names layer {max(layers)}, and {name} has {leaf.shape[0]} "
                    f"layers, counted from 0"
                )

    def trains(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        name = path_name(path)
        if any(_under(name, prefix) for prefix in frozen):
            return False
        return not chosen or any(_under(name, prefix) for prefix, _ in chosen)

    return jax.tree_util.tree_map_with_path(trains, params)


def _split_layers(text: str) -> tuple[str, tuple[int, ...]]:
    """'language.layers[12, 13]' -> ('language.layers', (12, 13)); without brackets no numbers."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[([\d,\s]+)\])?", text)
    if match is None:
        raise ValueError(
            f"config.optimizer.trained: {text!r} is not a prefix such as 'flow_head' or 'language.layers[12, 13]'"
        )
    numbers = match[2] or ""
    return match[1], tuple(int(number) for number in numbers.split(",") if number.strip())


def _only_layers(params: Any, trained: tuple[str, ...]) -> optax.GradientTransformation:
    """Zero for the layers of stacked parameters that `trained` does not name."""
    chosen = [_split_layers(prefix) for prefix in trained]

    def factor(path: tuple[Any, ...], leaf: Any) -> Any:
        own = [layers for prefix, layers in chosen if _under(path_name(path), prefix)]
        if not own or not all(own):
            return np.float32(1)
        mask = np.zeros((leaf.shape[0],) + (1,) * (leaf.ndim - 1), np.float32)
        mask[sorted({layer for layers in own for layer in layers})] = 1
        return mask

    factors = jax.tree_util.tree_map_with_path(factor, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def times(update: Any, factor: Any) -> Any:
            if isinstance(update, optax.MaskedNode):
                return update
            return update * jnp.asarray(factor, update.dtype)

        is_masked = lambda node: isinstance(node, optax.MaskedNode)
        return jax.tree.map(times, updates, factors, is_leaf=is_masked), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decayed(params: Any) -> Any:
    """Tree of bools like `params`: True for matrices and kernels; False for biases, norms and modulation offsets.

    The name decides rather than the rank, since a bias of stacked layers has two axes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _is_weight(path_name(path), leaf), params
    )


def _is_weight(name: str, leaf: Any) -> bool:
    last = name.split(".")[-1]
    return leaf.ndim >= 2 and last not in ("bias", "scale", "gamma")


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def warmup_plateau_cosine(peak: float, steps: int, warmup: int, tail: float) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` updates, then constant, then a cosine to 0 over the last `tail` of `steps`.

    Args:
      peak: learning rate of the plateau.
      steps: number of updates of the whole run.
      warmup: number of updates of the warm-up.
      tail: share of `steps` with the cosine, in [0, 1]; 0 keeps the rate constant to the end.

    Raises:
      ValueError: warm-up and tail overlap, or `tail` is not in [0, 1].
    """
    if not 0.0 <= tail <= 1.0:
        raise ValueError(f"config.optimizer.cosine_tail is {tail}; it must be between 0 and 1")
    decay = round(steps * tail)
    if warmup + decay > steps:
        room = f", or the tail to at most {(steps - warmup) / steps:.2f}" if warmup < steps else ""
        raise ValueError(
            f"{warmup} warm-up steps (config.optimizer.warmup) and a cosine tail of {decay} steps "
            f"(config.optimizer.cosine_tail) exceed a run of {steps} steps (config.steps); reduce the warm-up to at "
            f"most {steps - decay} steps{room}, or increase config.steps"
        )
    ramp = optax.linear_schedule(0.0, peak, max(warmup, 1))
    if decay == 0:
        return optax.join_schedules([ramp, optax.constant_schedule(peak)], [warmup])
    return optax.join_schedules(
        [ramp, optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, decay)],
        [warmup, steps - decay],
    )
