"""Auxiliary losses of a plan's reducers, read from the trace."""

from torch import Tensor

from tokensparse.plan.build import Plan
from tokensparse.tokens import Trace


def step_losses(plan: Plan, trace: Trace) -> dict[str, Tensor]:
    """What every reducer's ``loss`` says about its record.

    Args:
        plan: the plan that made the trace.
        trace: of one forward.

    Returns:
        Losses by name: ``loss_step{k}_{name}``, k counting the records.
    """
    return {
        f"loss_step{k}_{name}": value
        for k, record in enumerate(trace.steps)
        for name, value in plan.steps[record.step].reduce.loss(record).items()
    }
