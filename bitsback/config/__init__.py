"""YAML -> validated schema -> objects."""

from bitsback.config.experiment import Experiment, Run, load_run
from bitsback.config.load import load_config, to_yaml
from bitsback.config.schema import Config, json_schema

__all__ = ["Config", "Experiment", "Run", "json_schema", "load_config", "load_run", "to_yaml"]
