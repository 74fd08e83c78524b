"""Several processes that train one model: their numbers, sums over them, and the shards of tensors they hold."""

from bitsback.distributed._launch import say_once, started
from bitsback.distributed._ranks import ALONE, Ranks, number_over_ranks, over_ranks, present, summing
from bitsback.distributed._shards import Shard, holds_unreduced, is_shard, laid_out_as, local, resharded, shard_of, whole

__all__ = [
    "ALONE",
    "Ranks",
    "Shard",
    "holds_unreduced",
    "is_shard",
    "laid_out_as",
    "local",
    "number_over_ranks",
    "over_ranks",
    "present",
    "resharded",
    "say_once",
    "shard_of",
    "started",
    "summing",
    "whole",
]
