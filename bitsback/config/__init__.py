"""Configurations: YAML files, the schema that validates them, and the objects they are built into."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.config.experiment import Experiment as Experiment
    from bitsback.config.experiment import Run as Run
    from bitsback.config.experiment import load_run as load_run
    from bitsback.config.load import load_config as load_config
    from bitsback.config.load import to_yaml as to_yaml
    from bitsback.config.schema import Config as Config
    from bitsback.config.schema import json_schema as json_schema

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "experiment": ["Experiment", "Run", "load_run"],
        "load": ["load_config", "to_yaml"],
        "schema": ["Config", "json_schema"],
    },
)
