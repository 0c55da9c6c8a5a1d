"""What becomes of a run when a step goes bad: see `jaxpretrain.settings.GuardSettings`."""

from typing import Literal

from jaxpretrain.errors import UserError
from jaxpretrain.processes import say


class Guard:
    """Looks at every step, and decides.

    Args:
        policy: "stop", "skip" or "roll_back".
        largest_grad_norm: as the step has it, for messages.
        allowed: bad steps in a row, or times that the run was rolled back, before it stops.
    """

    def __init__(
        self,
        *,
        policy: Literal["stop", "skip", "roll_back"],
        largest_grad_norm: float,
        allowed: int,
    ):
        self._policy, self._limit, self._allowed = policy, largest_grad_norm, allowed
        self._count = 0

    def see(self, step: int, values: dict[str, float], replay: str) -> bool:
        """Takes the metrics of a step; True if the run is to be rolled back.

        Args:
            step: number of the step, from 1.
            values: its metrics.
            replay: the command that shows its batch.

        Raises:
            UserError: the run is to stop.
        """
        if not values["left_out"]:
            if self._policy == "skip":
                self._count = 0
            return False
        limit = f" (guard.largest_grad_norm is {self._limit:g})" if self._limit else ""
        what = (
            f"the loss is {values['loss']:.6g} at step {step}, with a gradient norm of "
            f"{values['grad_norm']:.6g}{limit}"
        )
        look = f"; to see its batch: {replay}"
        if self._policy == "stop":
            raise UserError(
                f"{what}: lower optimizer.learning_rate or lengthen the warmup, or go on with "
                f"guard.policy=skip or roll_back{look}"
            )
        self._count += 1
        if self._count > self._allowed:
            raise UserError(
                f"{what}, the bad step number {self._count} "
                + ("in a row" if self._policy == "skip" else "since the run was started")
                + f", and guard.allowed is {self._allowed}: lower optimizer.learning_rate{look}"
            )
        what_now = "its update is left out" if self._policy == "skip" else "rolling back"
        say(f"warning: {what}: {what_now}{look}")
        return self._policy == "roll_back"
