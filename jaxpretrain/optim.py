"""AdamW and its learning-rate schedules, assembled from optax."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import optax

from jaxpretrain.errors import UserError


class Optimizer(NamedTuple):
    """The update rule and, for the log, its learning rate by step."""

    update_rule: optax.GradientTransformation
    schedule: optax.Schedule


@lru_cache(maxsize=32)  # the same arguments give the same rule, and nothing is compiled again
def make_optimizer(
    *,
    total_steps: int,
    learning_rate: float = 1e-3,
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine",
    warmup_steps: int = 100,
    decay_fraction: float = 0.2,
    final_fraction: float = 0.1,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.98,
    epsilon: float = 1e-6,
    clip_norm: float = 1.0,
    first_moment: Literal["float32", "bfloat16"] = "float32",
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warmup and gradient clipping.

    Args:
        total_steps: updates in the whole run.
        learning_rate: the peak.
        schedule: after the linear warmup: "cosine" or "linear" down to the final fraction, "wsd"
            (stay, then decay linearly: Hu et al. 2024, arXiv:2404.06395) or "constant".
        warmup_steps: updates until the peak is reached.
        decay_fraction: share of all the steps that the decay of "wsd" takes.
        final_fraction: learning rate at the end, as a fraction of the peak.
        weight_decay: per update, times the learning rate; on matrices only, never on biases and
            norm scales.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        first_moment: how it is stored; "bfloat16" saves 2 bytes of the 12 that a parameter and its
            moments take, and decays at beta1 as that type has it (0.8984 for 0.9). The second
            stays in float32: its steps are too small for 8 bits.

    Raises:
        UserError: a value out of its range, or a warmup longer than the run.
    """
    for name, value in (("learning_rate", learning_rate), ("epsilon", epsilon)):
        if not value > 0:
            raise UserError(f"optimizer.{name} is {value}: it must be above 0")
    for name, value in (
        ("warmup_steps", warmup_steps),
        ("weight_decay", weight_decay),
        ("clip_norm", clip_norm),
    ):
        if value < 0:
            raise UserError(f"optimizer.{name} is {value}: it must not be negative")
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise UserError(f"optimizer.{name} is {value}: it must be in [0, 1)")
    for name, value in (("decay_fraction", decay_fraction), ("final_fraction", final_fraction)):
        if not 0 <= value <= 1:
            raise UserError(f"optimizer.{name} is {value}: it must be in [0, 1]")
    if warmup_steps >= total_steps:
        raise UserError(
            f"optimizer.warmup_steps is {warmup_steps} and train.steps {total_steps}: "
            f"lower it (a tenth of the steps, {total_steps // 10}, is usual), or train longer"
        )
    after = total_steps - warmup_steps
    final = learning_rate * final_fraction
    if schedule == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, after, alpha=final_fraction)
    elif schedule == "linear":
        main = optax.linear_schedule(learning_rate, final, after)
    elif schedule == "wsd":
        decay = min(after, max(1, round(total_steps * decay_fraction)))
        main = optax.linear_schedule(learning_rate, final, decay, transition_begin=after - decay)
    else:
        main = optax.constant_schedule(learning_rate)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        main = optax.join_schedules([warmup, main], [warmup_steps])
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(
        optax.adamw(
            main,
            b1=beta1,
            b2=beta2,
            eps=epsilon,
            weight_decay=weight_decay,
            mask=is_matrix,
            mu_dtype=first_moment,
        )
    )
    return Optimizer(optax.chain(*parts), main)


def is_matrix(params: Any) -> Any:
    """True for the parameters that are matrices (kernels and embeddings), by their names.

    The number of axes does not tell: a stacked bias of attention heads has three.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )
