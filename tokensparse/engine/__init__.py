"""Training on mmengine: the runner, its hooks and wrappers, for every task; a fault a file."""

from tokensparse.engine.bad_images import BadImagesHook
from tokensparse.engine.checkpoints import CheckpointHook
from tokensparse.engine.finite import FiniteHook
from tokensparse.engine.layer_decay import LayerDecay
from tokensparse.engine.precision import AutocastOptimWrapper
from tokensparse.engine.progress import ProgressHook
from tokensparse.engine.resume import ResumeHook
from tokensparse.engine.signals import SignalHook
from tokensparse.engine.token_map_hook import TokenMapHook

__all__ = [
    "AutocastOptimWrapper",
    "BadImagesHook",
    "CheckpointHook",
    "FiniteHook",
    "LayerDecay",
    "ProgressHook",
    "ResumeHook",
    "SignalHook",
    "TokenMapHook",
]
