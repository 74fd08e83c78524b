"""Head of every model file: settings, learned numbers, and a digest that guards its priors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsback import limits
from bitsback.coding.relative_entropy import STANDARD_STEP
from bitsback.coding.tables import PriorTable
from bitsback.config import Config, Experiment
from bitsback.config.experiment import build_model
from bitsback.config.network import FactorySettings
from bitsback.data import Preprocessing
from bitsback.errors import FileError
from bitsback.formats._exact_outputs import BATCH
from bitsback.formats._label_code import has_exact_bits
from bitsback.formats._size_limits import check_size, is_shape
from bitsback.formats.config_text import bases, put_settings
from bitsback.formats.config_tree import MODEL_SECTIONS, from_tree, to_tree, without_codec
from bitsback.formats.container import DIGEST_BITS as GUARD_BITS
from bitsback.formats.container import BitReader, BitWriter, digest
from bitsback.formats.model_file._input_kinds import InputKinds
from bitsback.formats.side_information import SideInformation, Slot, densities_of
from bitsback.inputs import placed
from bitsback.learned import FLOAT32
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.classes import CategoricalLikelihood
from bitsback.model import BayesianModel
from bitsback.model.buffers import unmoved
from bitsback.model.modes import evaluating
from bitsback.torch_state import seeded

__all__ = ["EmptyModel", "Tree", "model_tree", "put_experiment_head", "put_head", "take_side"]


def put_head(writer: BitWriter, settings: dict[str, Any], side: SideInformation, model: BayesianModel) -> None:
    """Write settings, learned numbers, and a digest of priors whose tables may differ between machines.

    Args:
        writer: receives the bits.
        settings: configuration as a tree of JSON values.
        side: learned numbers, on their grids.
        model: model whose priors are guarded.
    """
    put_settings(writer, settings)
    for level, width in zip(side.levels().tolist(), side.bits_each().tolist(), strict=True):
        writer.put(level, width)
    guard = _guard(model)
    writer.put(int(guard is not None), 1)
    if guard is not None:
        writer.put(guard, GUARD_BITS)


def _guard(model: BayesianModel) -> int | None:
    """Return a digest of scales and tables of the priors that are not computed exactly; None if all are exact."""
    inexact = {prior.standard.name: prior for prior in densities_of(model) if not prior.standard.exact}
    if not inexact:
        return None
    tables = [PriorTable.build(prior.standard, STANDARD_STEP).cumulative.astype("<i8") for prior in inexact.values()]
    scales = [prior.scale.astype("<f8") for prior in inexact.values()]
    return digest(b"".join(scale.tobytes() + table.tobytes() for scale, table in zip(scales, tables, strict=True)))


def take_side(reader: BitReader, side: SideInformation, model: BayesianModel) -> None:
    """Read the learned numbers into the model, and compare the digest of its priors.

    Args:
        reader: positioned behind the settings.
        side: slots of the learned numbers, which are overwritten.
        model: model that the slots belong to.

    Raises:
        FileError: if the model's priors are computed differently on this machine, or a number is not finite.
    """
    side.assign(np.array([reader.take(width) for width in side.bits_each().tolist()], dtype=np.int64))
    guard = reader.take(GUARD_BITS) if reader.take(1) else None
    if guard != _guard(model):
        raise FileError("the file's prior is computed differently on this machine (pyro); unpack it where it was packed")


Tree = dict[str, Any]


@dataclass(frozen=True)
class EmptyModel:
    """Settings of a model file, and an untrained model to hold its numbers.

    Attributes:
        tree: the settings as JSON values.
        config: the settings as a configuration.
        model: untrained model.
        likelihood: its likelihood.
        scaling: scaling of the inputs.
        inputs: shapes and types of the inputs.
        rows: largest number of examples in one forward pass.
        codec_factory: ``package.module:function`` of a user's codec, if the locations name one.
    """

    tree: Tree
    config: Config
    model: BayesianModel
    likelihood: Likelihood
    scaling: Preprocessing
    inputs: InputKinds
    rows: int = BATCH
    codec_factory: str | None = None

    @classmethod
    def of(cls, tree: Tree, locations: Sequence[str] = (), file_bytes: int = 0) -> "EmptyModel":
        """Build the untrained model of a file's settings.

        Args:
            tree: the settings as JSON values.
            locations: places on this machine, such as ``data.root=DIR``.
            file_bytes: size of the file in bytes, which limits the size of the model.

        Returns:
            settings and model.

        Raises:
            FileError: if the settings are not valid, or describe a model too large for the file.
        """
        values = {key: value for key, value in tree.items() if key in MODEL_SECTIONS}
        elsewhere, codec_factory = without_codec(locations) if "codec" in tree else (locations, None)
        config = from_tree(values, elsewhere, data_is_needed=False)
        try:
            inputs = InputKinds(tree["inputs"], whole=bool(tree.get("whole_inputs")))
            spread = _sizes(tree.get("statistics", []))
            classes, outputs = tree["likelihood"].get("classes"), int(tree.get("outputs") or 0)
            targets = _sizes(tree.get("targets", []))
            scale, at_once = float(tree.get("scale", 1.0)), tree.get("rows")
            several = limits.TARGETS.value if "classes" in tree["likelihood"] else min(outputs, limits.TARGETS.value)
            fits = math.prod(spread) <= max(1, file_bytes) and math.prod(targets) <= max(1, several)
            _check_scaling(scale, fits and (at_once is None or (type(at_once) is int and at_once > 0)))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FileError("the file does not say what its inputs look like; it is damaged") from error
        likelihood = config.likelihood.build(classes, torch.zeros(1, *targets))
        count = likelihood.classes if isinstance(likelihood, CategoricalLikelihood) else outputs
        # the frozen configurations are known to be small: no need to build them twice to measure them
        rows = BATCH
        if tree not in bases():
            symbols, whole = math.prod(targets) if count != outputs else 1, inputs.is_whole
            blank = None if inputs.is_one_tensor else inputs.blank
            rows = check_size(config, inputs.sizes, count, whole=whole, file_bytes=file_bytes, symbols=symbols, blank=blank)
        scaling = Preprocessing(torch.zeros(spread), torch.full(spread, scale))
        model = build_model(config, inputs.blank(2), count, is_tried_out=at_once is None)
        return cls(tree, config, model, likelihood, scaling, inputs, at_once or rows, codec_factory)

    @staticmethod
    def statistics_of(scaling: Preprocessing) -> tuple[Slot, ...]:
        """Return slots of the shift and scale that were measured on the training inputs; empty if they are constants."""
        if not (scaling.shift.ndim or scaling.scale.ndim):
            return ()
        shift, scale = torch.broadcast_tensors(scaling.shift, scaling.scale)
        return ("input mean", shift, FLOAT32), ("input scale", scale, FLOAT32)

    def side(self) -> SideInformation:
        """Return slots of all learned numbers that are not coded weights, in the order of the file."""
        numbers = SideInformation.of(self.model, self.likelihood, with_frozen=True)
        return SideInformation((*numbers.slots, *self.statistics_of(self.scaling)))


def _check_scaling(scale: float, fits: bool) -> None:
    """Raise ValueError unless the scale is a positive float32 and the shapes fit the file."""
    if not (0 < scale <= torch.finfo(torch.float32).max and fits):
        raise ValueError("a scaling that makes no sense")


def _sizes(value: Any) -> tuple[int, ...]:
    if not is_shape(value):
        raise ValueError("not the sizes of a tensor")
    return tuple(value)


def model_tree(experiment: Experiment) -> Tree:
    """Return the settings of a model file as JSON values."""
    settled = experiment.config.likelihood.resolved(experiment.likelihood)
    tree = to_tree(experiment.config.model_copy(update={"likelihood": settled}), MODEL_SECTIONS)
    inputs, targets = experiment.dataset.train.batch(slice(0, 2))
    preprocessing = experiment.dataset.preprocessing
    if "classes" in tree["likelihood"]:
        tree["likelihood"]["classes"] = experiment.likelihood.outputs(targets)
    else:
        tree["outputs"] = experiment.likelihood.outputs(targets)
    # left out where it says nothing: real targets that are not standardised, and answers, of which outputs are as many
    likelihood = experiment.likelihood
    needed = tree["likelihood"].get("standardise") or has_exact_bits(likelihood) or likelihood.ignore is not None
    if targets.ndim > 1 and needed:
        tree["targets"] = list(targets.shape[1:])
    if experiment.dataset.in_memory:
        del tree["data"]
    tree["inputs"] = InputKinds.tree_of(inputs)
    if experiment.dataset.train.pads:
        tree["padded"] = True
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        tree["whole_inputs"] = True
    if isinstance(experiment.config.network, FactorySettings) and not _runs_on_zeros(experiment.model, tree["inputs"]):
        tree["rows"] = len(experiment.dataset.train)
    if preprocessing.shift.ndim or preprocessing.scale.ndim:
        tree["statistics"] = list(torch.broadcast_shapes(preprocessing.shift.shape, preprocessing.scale.shape))
    else:
        tree["scale"] = float(preprocessing.scale)
    return tree


@torch.no_grad()
def _runs_on_zeros(model: BayesianModel, inputs: Any) -> bool:
    """Return whether a receiver can try the network on two examples of zeros; one that takes whole batches fails."""

    blank = placed(InputKinds(inputs).blank(2), model.device, model.dtype)
    with evaluating(model.network), unmoved(model.network), seeded(0, model.device):
        try:
            model.outputs(blank)
        except Exception:  # whatever the user's network raises on too few examples
            return False
    return True


def put_experiment_head(writer: BitWriter, experiment: Experiment, tree: Tree) -> None:
    """Write settings, learned numbers (rounded to their grids, in place) and guard.

    Args:
        writer: receives the bits.
        experiment: trained experiment.
        tree: result of :func:`model_tree`.
    """
    experiment.model.round_to_grid()
    numbers = SideInformation.of(experiment.model, experiment.likelihood, with_frozen=True)
    statistics = EmptyModel.statistics_of(experiment.dataset.preprocessing)
    put_head(writer, tree, SideInformation((*numbers.slots, *statistics)), experiment.model)
