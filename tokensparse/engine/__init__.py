"""Training on mmengine: the runner, its hooks and wrappers, for every task; a fault a file."""

from tokensparse.engine.precision import AutocastOptimWrapper
from tokensparse.engine.progress import ProgressHook

__all__ = ["AutocastOptimWrapper", "ProgressHook"]
