"""Write quantised model files, and search for the grid of every weight tensor."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor
from tqdm import tqdm

from bitsback.coding.grid import STEP_LEVELS
from bitsback.config import Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.errors import FileError
from bitsback.formats.config_tree import locations_of
from bitsback.formats.container import BitWriter, seal
from bitsback.formats.model_file._codec import ModelCodec, register_codec
from bitsback.formats.model_file._head import model_tree, put_experiment_head
from bitsback.formats.model_file.grid_codec import (
    DECIMAL,
    DIGITS_BITS,
    MOST_DIGITS,
    QUANTISED,
    DecodedGrids,
    QuantisedNetwork,
    read_decimal,
    read_quantised,
    step_levels,
)
from bitsback.formats.model_file.read import decode
from bitsback.model import BayesianModel, evaluate

__all__ = ["Levels", "content_of", "decimal_content", "quantised_content"]

Levels = Mapping[str, int]
"""Step level of every weight tensor, by name; see :func:`bitsback.formats.model_file.grid_codec.step_levels`."""

TRADE_OFFS = (0.0, 0.25, 1.0)
"""Factors of the code length relative to the distortion that the search tries."""
SHIFTS = range(-6, 17, 2)
"""Quarter octaves by which the search makes all grids finer or coarser together."""

MOVES = (4, 2, 1)
"""Quarter octaves by which the search then changes the grid of one tensor, up or down, while the total falls."""

SEARCH_EXAMPLES = 8192
"""Training examples on which totals are compared during the search; the final file is measured on all."""


def quantised_content(experiment: Experiment, settings: PackSettings, progress: bool = True) -> bytes:
    """Return a quantised file.

    Without budget and tuning every grid step is ``steps_per_std`` stds. With a budget, the finest grids that fit are used. With
    tuning, a grid is chosen for each tensor to minimise the bits of file and labels, within the budget.

    Args:
        experiment: trained experiment; its hidden units are put in canonical order.
        settings: section ``pack``.
        progress: show a progress bar.

    Returns:
        the bytes of the file.

    Raises:
        FileError: if the budget is too small; raised with the least that is possible.
    """
    wanted = settings.quantising
    start = step_levels(experiment.model, wanted.steps_per_std)
    if settings.budget_bytes is None and settings.tuning is None:
        return content_of(experiment, start, wanted.trade_off, permute=wanted.permute)
    search = _Search(experiment, settings)
    if settings.tuning is None:
        for shift in SHIFTS:
            content = search.content(_shifted(start, shift), wanted.trade_off)
            if len(content) <= search.most:
                return content
        raise search.too_small()
    levels, trade_off = search.run(_tuned_start(experiment.model, start), progress)
    return search.content(levels, trade_off)


def decimal_content(experiment: Experiment, digits: int, *, permute: bool = True) -> bytes:
    """Return a file whose weights are the means, rounded exactly to ``digits`` decimal digits.

    Args:
        experiment: trained experiment; its hidden units are put in canonical order.
        digits: number of decimal digits, 0 to 9.
        permute: whether to take the refund for the order of hidden units.

    Returns:
        the bytes of the file.

    Raises:
        FileError: if ``digits`` is out of range.
    """
    if not 0 <= digits <= MOST_DIGITS:
        raise FileError(f"a file holds weights of 0 to {MOST_DIGITS} decimal digits, not {digits}; ask for fewer")
    experiment.model.honour_edits(everywhere=True)
    return _sealed(experiment, QuantisedNetwork.decimal(experiment.model, _axes(experiment), digits, permute=permute), digits)


def content_of(experiment: Experiment, levels: Levels, trade_off: float, *, permute: bool) -> bytes:
    """Return the file with given grids. Hidden units of the model are put in canonical order, in place.

    Args:
        experiment: trained experiment.
        levels: step level of every weight tensor.
        trade_off: factor of the code length relative to the distortion, both in bits.
        permute: whether to take the refund for the order of hidden units.

    Returns:
        the bytes of the file.
    """
    return _sealed(experiment, QuantisedNetwork.of(experiment.model, _axes(experiment), levels, trade_off, permute=permute))


def _axes(experiment: Experiment) -> int | None:
    """Return the axes of a batch of inputs; None for inputs of several tensors."""
    one = experiment.dataset.train.inputs[:1]
    return one.ndim if isinstance(one, Tensor) else None


def _sealed(experiment: Experiment, network: QuantisedNetwork, digits: int | None = None) -> bytes:
    writer = BitWriter()
    put_experiment_head(writer, experiment, model_tree(experiment))
    if digits is not None:
        writer.put(digits, DIGITS_BITS)
    message, _ = network.put(writer)
    return seal(QUANTISED if digits is None else DECIMAL, writer.to_bytes() + message)


def _shifted(levels: Levels, shift: int, name: str | None = None) -> dict[str, int]:
    """Return all levels, or the one of ``name``, moved by ``shift`` and clipped to the range of the format."""
    last = STEP_LEVELS.stop - 1
    return {
        key: min(max(level + (shift if name in (None, key) else 0), STEP_LEVELS.start), last) for key, level in levels.items()
    }


def _tuned_start(model: BayesianModel, levels: Levels) -> Levels:
    """Return the levels at which the search starts; a point estimate starts at a quarter of its weights' rms."""
    found = dict(levels)
    for weight in model.weights:
        size = float(weight.posterior.mean.detach().double().square().mean().sqrt())
        if weight.posterior.std() is None and size > 0:
            found[weight.name] = round(4 * math.log2(size / 4))
    return _shifted(found, 0)


class _Search:
    """Coordinate descent on the grid steps, minimising bits of the file plus data bits given the file."""

    def __init__(self, experiment: Experiment, settings: PackSettings) -> None:
        self._experiment, self._settings = experiment, settings
        self._state = {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}
        train = experiment.dataset.train
        self._examples = train.spread(SEARCH_EXAMPLES)
        self._share = len(self._examples) / len(train)
        self._locations = locations_of(experiment.config)
        self.most = math.inf if settings.budget_bytes is None else settings.budget_bytes
        self._least = math.inf

    def content(self, levels: Levels, trade_off: float) -> bytes:
        """Return the file with these grids, from the original state of the model."""
        self._experiment.model.load_state_dict(self._state)
        content = content_of(self._experiment, levels, trade_off, permute=self._settings.quantising.permute)
        self._least = min(self._least, len(content))
        return content

    def too_small(self) -> FileError:
        """Return the error for a budget that no grid meets; it states the smallest file found."""
        return FileError(
            f"a budget of {self._settings.budget_bytes} bytes is too small; the least for this network is {self._least} bytes"
        )

    def run(self, start: Levels, progress: bool) -> tuple[Levels, float]:
        """Return the best grids found from ``start``, and the best trade-off between code length and distortion."""
        tries = len(TRADE_OFFS) * len(SHIFTS) + 2 * len(MOVES) * len(start)
        with tqdm(total=tries, desc="grids", leave=False, disable=not progress, delay=2.0) as bar:

            def cost(levels: Levels, trade_off: float) -> float:
                bar.update()
                content = self.content(levels, trade_off)
                if len(content) > self.most:
                    return math.inf
                loaded = decode(content, "the packed file", self._locations)
                data_bits = evaluate(loaded.model, loaded.likelihood, self._examples, samples=0).data_bits
                return 8 * len(content) + data_bits / self._share

            alternatives = [(_shifted(start, shift), trade_off) for trade_off in TRADE_OFFS for shift in SHIFTS]
            costs = [cost(*alternative) for alternative in alternatives]
            least = min(costs)
            if math.isinf(least):
                raise self.too_small()
            levels, trade_off = alternatives[costs.index(least)]
            return self._descend(levels, least, lambda tried: cost(tried, trade_off)), trade_off

    def _descend(self, levels: Levels, least: float, cost: Callable[[Levels], float]) -> Levels:
        for move in MOVES:
            for name in levels:
                for shift in (move, -move):
                    while (found := cost(tried := _shifted(levels, shift, name))) < least:
                        levels, least = tried, found
        return levels


GRID_CODEC = register_codec(ModelCodec(QUANTISED, quantised_content, read_quantised, DecodedGrids.parts))
DECIMAL_CODEC = register_codec(ModelCodec(DECIMAL, None, read_decimal, DecodedGrids.parts))
"""Codec written only by :func:`decimal_content`: the number of digits is no setting of ``pack``."""
