"""Registries: where configs find things by name.

``MODELS`` and ``DATASETS`` are children of mmengine's registries, so mmdet's and mmseg's own
configs find ours by scope (``type='tokensparse.SwinTransformer'``). ``REDUCERS`` and ``RECOVERIES``
hold what a plan names.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="tokensparse", locations=["tokensparse"])
DATASETS = Registry(
    "dataset", parent=MMENGINE_DATASETS, scope="tokensparse", locations=["tokensparse"]
)
METRICS = Registry(
    "metric", parent=MMENGINE_METRICS, scope="tokensparse", locations=["tokensparse"]
)
DATA_SAMPLERS = Registry(
    "data sampler", parent=MMENGINE_DATA_SAMPLERS, scope="tokensparse", locations=["tokensparse"]
)
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="tokensparse", locations=["tokensparse"])
OPTIM_WRAPPERS = Registry(
    "optim_wrapper",
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope="tokensparse",
    locations=["tokensparse"],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_CONSTRUCTORS,
    scope="tokensparse",
    locations=["tokensparse"],
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer",
    parent=MMENGINE_INITIALIZERS,
    scope="tokensparse",
    locations=["tokensparse"],
)
REDUCERS = Registry("reducer", scope="tokensparse", locations=["tokensparse.reducers"])
RECOVERIES = Registry("recovery", scope="tokensparse", locations=["tokensparse.recoveries"])
