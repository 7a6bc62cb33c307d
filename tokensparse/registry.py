"""Registries: where configs find things by name.

``MODELS`` and ``DATASETS`` are children of mmengine's registries, so mmdet's and mmseg's own
configs find ours by scope (``type='tokensparse.SwinTransformer'``). ``REDUCERS`` and ``RECOVERIES``
hold what a plan names.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="tokensparse", locations=["tokensparse"])
DATASETS = Registry(
    "dataset", parent=MMENGINE_DATASETS, scope="tokensparse", locations=["tokensparse"]
)
METRICS = Registry(
    "metric", parent=MMENGINE_METRICS, scope="tokensparse", locations=["tokensparse"]
)
REDUCERS = Registry("reducer", scope="tokensparse", locations=["tokensparse.reducers"])
RECOVERIES = Registry("recovery", scope="tokensparse", locations=["tokensparse.recoveries"])
