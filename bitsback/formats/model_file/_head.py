"""What every model file says before its weights: settings, learned numbers, a guard of its priors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bitsback.coding.relative_entropy import STANDARD_STEP
from bitsback.coding.tables import PriorTable
from bitsback.config import Config, Experiment
from bitsback.config.experiment import build_model
from bitsback.data import Preprocessing
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats._size_limits import check_size
from bitsback.formats.config_text import bases, put_settings
from bitsback.formats.config_tree import MODEL_SECTIONS, from_tree, to_tree, without_codec
from bitsback.formats.container import DIGEST_BITS as GUARD_BITS
from bitsback.formats.container import BitReader, BitWriter, digest
from bitsback.formats.side_information import SideInformation, Slot, densities_of
from bitsback.learned import FLOAT32
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import BayesianModel

__all__ = ["EmptyModel", "Tree", "model_tree", "put_experiment_head", "put_head", "take_side"]


def put_head(writer: BitWriter, settings: dict[str, Any], side: SideInformation, model: BayesianModel) -> None:
    """Write settings, learned numbers, and a guard of priors that are not computed alike on every machine."""
    put_settings(writer, settings)
    for level, width in zip(side.levels().tolist(), side.bits_each().tolist(), strict=True):
        writer.put(level, width)
    guard = _guard(model)
    writer.put(int(guard is not None), 1)
    if guard is not None:
        writer.put(guard, GUARD_BITS)


def _guard(model: BayesianModel) -> int | None:
    """The digest over scales and tables of inexact shapes; None when all are exact."""
    inexact = {prior.standard.name: prior for prior in densities_of(model) if not prior.standard.exact}
    if not inexact:
        return None
    tables = [PriorTable.build(prior.standard, STANDARD_STEP).cumulative.astype("<i8") for prior in inexact.values()]
    scales = [prior.scale.astype("<f8") for prior in inexact.values()]
    return digest(b"".join(scale.tobytes() + table.tobytes() for scale, table in zip(scales, tables, strict=True)))


def take_side(reader: BitReader, side: SideInformation, model: BayesianModel) -> None:
    """Read the learned numbers into the model; raises FileError when its priors are computed differently here."""
    side.assign(np.array([reader.take(width) for width in side.bits_each().tolist()], dtype=np.int64))
    guard = reader.take(GUARD_BITS) if reader.take(1) else None
    if guard != _guard(model):
        raise FileError("the file's prior is computed differently on this machine (pyro); unpack it where it was packed")


Tree = dict[str, Any]


@dataclass(frozen=True)
class EmptyModel:
    """What a model file is built around: settings, and an empty model to hold the numbers."""

    tree: Tree
    config: Config
    model: BayesianModel
    likelihood: Likelihood
    scaling: Preprocessing
    rows: int = BATCH
    codec_factory: str | None = None
    """Which codec of the user's own the locations name."""

    @classmethod
    def of(cls, tree: Tree, locations: Sequence[str] = (), file_bytes: int = 0) -> "EmptyModel":
        """The untrained model of a file's settings; raises FileError when they make none."""
        values = {key: value for key, value in tree.items() if key in MODEL_SECTIONS}
        elsewhere, codec_factory = without_codec(locations) if "codec" in tree else (locations, None)
        config = from_tree(values, elsewhere, data_is_needed=False)
        try:
            shape, spread = _sizes(tree["inputs"]), _sizes(tree.get("statistics", []))
            classes, outputs = tree["likelihood"].get("classes"), int(tree.get("outputs") or 0)
            targets = _sizes(tree.get("targets", []))
            whole, scale = bool(tree.get("whole_inputs")), float(tree.get("scale", 1.0))
            fits = math.prod(spread) <= max(1, file_bytes) and math.prod(targets) <= max(1, outputs)
            if not (0 < scale <= torch.finfo(torch.float32).max and fits):
                raise ValueError("a scaling that makes no sense")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FileError("the file does not say what its inputs look like; it is damaged") from error
        likelihood = config.likelihood.build(classes, torch.zeros(1, *targets))
        count = likelihood.classes if isinstance(likelihood, CategoricalLikelihood) else outputs
        rows = BATCH  # the known ones are small
        if tree not in bases():
            rows = check_size(config, shape, count, whole=whole, file_bytes=file_bytes)
        scaling = Preprocessing(torch.zeros(spread), torch.full(spread, scale))
        example = torch.zeros(2, *shape, dtype=torch.int64 if whole else torch.float32)
        return cls(tree, config, build_model(config, example, count), likelihood, scaling, rows, codec_factory)

    @staticmethod
    def statistics_of(scaling: Preprocessing) -> tuple[Slot, ...]:
        """The numbers of a scaling that were measured on the training inputs."""
        if not (scaling.shift.ndim or scaling.scale.ndim):
            return ()
        shift, scale = torch.broadcast_tensors(scaling.shift, scaling.scale)
        return ("input mean", shift, FLOAT32), ("input scale", scale, FLOAT32)

    def side(self) -> SideInformation:
        """Everything learned that is not a coded weight, in the order of the file."""
        numbers = SideInformation.of(self.model, self.likelihood, with_frozen=True)
        return SideInformation((*numbers.slots, *self.statistics_of(self.scaling)))


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size > 0 for size in value):
        raise ValueError("not the sizes of a tensor")
    return tuple(value)


def model_tree(experiment: Experiment) -> Tree:
    """The settings of a model file."""
    settled = experiment.config.likelihood.resolved(experiment.likelihood)
    tree = to_tree(experiment.config.model_copy(update={"likelihood": settled}), MODEL_SECTIONS)
    inputs, preprocessing = experiment.dataset.train.inputs, experiment.dataset.preprocessing
    targets = experiment.dataset.train.targets
    if "classes" in tree["likelihood"]:
        tree["likelihood"]["classes"] = experiment.likelihood.outputs(targets)
    else:
        tree["outputs"] = experiment.likelihood.outputs(targets)
    if tree["likelihood"].get("standardise") and targets.ndim > 1:
        tree["targets"] = list(targets.shape[1:])
    if experiment.dataset.in_memory:
        del tree["data"]
    tree["inputs"] = list(inputs.shape[1:])
    if not inputs.is_floating_point():
        tree["whole_inputs"] = True
    if preprocessing.shift.ndim or preprocessing.scale.ndim:
        tree["statistics"] = list(torch.broadcast_shapes(preprocessing.shift.shape, preprocessing.scale.shape))
    else:
        tree["scale"] = float(preprocessing.scale)
    return tree


def put_experiment_head(writer: BitWriter, experiment: Experiment, tree: Tree) -> None:
    """Write settings, learned numbers (rounded to their grids, in place) and guard."""
    experiment.model.round_to_grid()
    numbers = SideInformation.of(experiment.model, experiment.likelihood, with_frozen=True)
    statistics = EmptyModel.statistics_of(experiment.dataset.preprocessing)
    put_head(writer, tree, SideInformation((*numbers.slots, *statistics)), experiment.model)
