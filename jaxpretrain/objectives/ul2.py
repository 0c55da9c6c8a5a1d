"""UL2's mixture of denoisers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.objectives.span_corruption import Denoiser
from jaxpretrain.types import Array, Example

# Mode, mean span length (None: one span at the end) and noise density of the seven denoisers of
# the paper's table.
DENOISERS = (
    ("r", 3.0, 0.15),
    ("r", 8.0, 0.15),
    ("x", 3.0, 0.5),
    ("x", 8.0, 0.5),
    ("x", 64.0, 0.15),
    ("x", 64.0, 0.5),
    ("s", None, 0.25),
)
MODES = ("r", "s", "x")
# A mean span length that no row reaches: one span, which the composition puts at the end.
ONE_SPAN = 1e9


@dataclass(frozen=True, kw_only=True)
class UL2(Denoiser):
    """A denoiser drawn for each row, told by a mode piece (Tay et al. 2023, arXiv:2205.05131).

    R is regular span corruption, X is extreme (long spans or half of the text), S continues the
    first three quarters of the text. The seven denoisers are those of the paper and equally
    likely; within a mode they always are. Public implementations disagree on the shares, so the
    shares of the modes are settings.

    Attributes:
        r_share: share of the rows that the two R-denoisers get.
        s_share: share of the S-denoiser.
        x_share: share of the four X-denoisers.

    Raises:
        UserError: shares that are negative or all zero.
    """

    name = "ul2"
    needs = ("sentinels", "mode_r", "mode_s", "mode_x")

    r_share: float = 2 / 7
    s_share: float = 1 / 7
    x_share: float = 4 / 7

    def __post_init__(self):
        shares = (self.r_share, self.s_share, self.x_share)
        if min(shares) < 0 or sum(shares) <= 0:
            raise UserError(
                f"objective.r_share, s_share and x_share are {shares}: none may be negative, and "
                "one must be above 0"
            )

    def noises(self, train: bool) -> list[tuple[float, float]]:
        """See `Denoiser`."""
        return [(density, mean or ONE_SPAN) for _, mean, density in DENOISERS]

    @property
    def has_modes(self) -> bool:
        """See `Denoiser`."""
        return True

    def draw(self, keys: Array, *, train: bool):
        """See `Denoiser`: one denoiser for each row."""
        published = {"r": 2, "s": 1, "x": 4}
        shares = {"r": self.r_share, "s": self.s_share, "x": self.x_share}
        shares = shares if train else published
        weights = np.array([shares[mode] / published[mode] for mode, _, _ in DENOISERS])
        logits = jnp.log(jnp.asarray(weights / weights.sum(), jnp.float32))
        picked = jax.vmap(lambda key: jax.random.categorical(key, logits))(keys)
        pieces = {"r": self.vocab.mode_r, "s": self.vocab.mode_s, "x": self.vocab.mode_x}
        piece_of = jnp.array([pieces[mode] for mode, _, _ in DENOISERS], jnp.int32)
        mode_of = jnp.array([MODES.index(mode) for mode, _, _ in DENOISERS], jnp.int32)
        return picked, piece_of[picked], {"mode": mode_of[picked]}

    def groups(self, example: Example):
        """See `Objective.groups`: one for each mode."""
        return {f"loss_{mode}": example.extra["mode"] == i for i, mode in enumerate(MODES)}
