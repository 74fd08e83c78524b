"""The loop: batch, data bits + weight bits, step, log."""

from bitsback.training.loggers import Logger
from bitsback.training.settings import LedgerSettings, LoggingSettings, TrainingSettings
from bitsback.training.train import Outcome, start, train

__all__ = ["LedgerSettings", "Logger", "LoggingSettings", "Outcome", "TrainingSettings", "start", "train"]
