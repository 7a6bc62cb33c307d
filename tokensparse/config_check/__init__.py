"""Strict configs: a misspelt or unknown key, at any depth, stops the run before data open.

So does a neck or head that does not fit a backbone of ours. Legal keys are read off the
constructors that the registries name; what no constructor names is listed in ``names.py``.
"""

from tokensparse.config_check.check import check_config, merge_options, read_config
from tokensparse.config_check.walk import ConfigError, refuse_unknown

__all__ = ["ConfigError", "check_config", "merge_options", "read_config", "refuse_unknown"]
