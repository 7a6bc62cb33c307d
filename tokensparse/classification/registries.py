"""Children of mmengine's registries that only training needs."""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_INITIALIZERS
from mmengine.registry import Registry

SCOPE = "tokensparse"
LOCATIONS = ["tokensparse.classification"]

DATA_SAMPLERS = Registry(
    "data sampler", parent=MMENGINE_DATA_SAMPLERS, scope=SCOPE, locations=LOCATIONS
)
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope=SCOPE, locations=LOCATIONS)
OPTIM_WRAPPERS = Registry(
    "optim_wrapper", parent=MMENGINE_OPTIM_WRAPPERS, scope=SCOPE, locations=LOCATIONS
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer", parent=MMENGINE_INITIALIZERS, scope=SCOPE, locations=LOCATIONS
)
