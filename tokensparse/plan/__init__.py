"""A plan says where tokens become fewer and where they come back; one loop runs it.

``syntax`` reads a config, ``counts`` follows token counts and refuses what cannot run, ``build``
makes the modules, ``run`` is the loop.
"""

from tokensparse.plan.build import BlockSpec, Plan, StageSpec, Step, build_part
from tokensparse.plan.losses import step_losses
from tokensparse.plan.run import Flow, Windows, close_all, run_stage, stage_windows
from tokensparse.plan.syntax import PlanConfig, PlanError, closest, refuse_unknown

__all__ = [
    "BlockSpec",
    "Flow",
    "Plan",
    "PlanConfig",
    "PlanError",
    "StageSpec",
    "Step",
    "Windows",
    "build_part",
    "close_all",
    "closest",
    "refuse_unknown",
    "run_stage",
    "stage_windows",
    "step_losses",
]
