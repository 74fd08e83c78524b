"""Training: the loop over batches, its objectives, logs and checkpoints."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.training._loggers import Logger as Logger
    from bitsback.training.settings import EngineSettings as EngineSettings
    from bitsback.training.settings import LedgerSettings as LedgerSettings
    from bitsback.training.settings import LoggingSettings as LoggingSettings
    from bitsback.training.settings import TrainingSettings as TrainingSettings
    from bitsback.training.train import Outcome as Outcome
    from bitsback.training.train import start as start
    from bitsback.training.train import train as train

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_loggers": ["Logger"],
        "settings": ["EngineSettings", "LedgerSettings", "LoggingSettings", "TrainingSettings"],
        "train": ["Outcome", "start", "train"],
    },
)
