"""Build data, model and likelihood from a configuration, and reopen them from a run directory."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsback.atomic_io import DamagedFileError
from bitsback.config.from_data import is_run, read_config
from bitsback.config.labels import check_declared, with_classes
from bitsback.config.load import load_config, to_yaml
from bitsback.config.schema import Config
from bitsback.config.suited import suited
from bitsback.data import Dataset, source
from bitsback.data.mask import MASK_NOTE, NOT_CODED
from bitsback.data.settings import GivenDataSettings
from bitsback.errors import ConfigError, DataError, RunError
from bitsback.inputs import CHANNELS_LAST, Inputs, Output, call, chosen, described, each, leaves, looks_channels_last
from bitsback.ledger import Ledger, Results, open_results
from bitsback.likelihoods import Likelihood
from bitsback.likelihoods.settings import GaussianLikelihoodSettings
from bitsback.model import BayesianModel, bayesianize, take_ledger
from bitsback.model.modes import evaluating
from bitsback.model.verdict import LAST_EPOCHS, Course
from bitsback.torch_state import using_dtype
from bitsback.training import Logger, Outcome, train
from bitsback.training.checkpoint import FORMAT, PREVIOUS, load_weights, read_checkpoint

__all__ = ["Experiment", "Run", "build_model", "load_run", "open_source", "try_out"]


def build_model(
    config: Config,
    inputs: Inputs,
    outputs: int,
    check: Callable[[Tensor], object] = lambda output: None,
    network: nn.Module | None = None,
    *,
    is_tried_out: bool = True,
) -> BayesianModel:
    """Build the untrained model of a configuration, with seeded initial weights.

    If ``training.precision`` is float64 the model is made in float64: initial weights drawn in float32 differ between machines.

    Args:
        config: network, posterior, priors, and the seed of the initial weights.
        inputs: (k, ...), a few inputs, on which the network is run.
        outputs: number of outputs that the likelihood needs.
        check: called with the network's outputs for these inputs; raises if they do not suit the likelihood.
        network: used in place of the configuration's network.
        is_tried_out: whether the network is run on the inputs and its outputs checked.

    Returns:
        the model, in the network's own mode.

    Raises:
        ConfigError: if the network cannot be built or run.
        LayerError: if no weight can get a posterior, or a layer is not supported.
        PriorError: if a prior does not suit the weights.
    """
    double = config.training.precision == "float64"
    example = each(inputs, lambda tensor: tensor.double() if double and tensor.is_floating_point() else tensor)
    with using_dtype(torch.float64 if double else torch.get_default_dtype()):
        torch.manual_seed(config.seed)
        network = config.network.build(example, outputs) if network is None else network
        if is_tried_out:
            with torch.no_grad(), evaluating(network):  # puts modules back: a factory may want parts in eval mode
                check(try_out(network, example, getattr(config.network, "factory", config.network.kind), config.network.output))
        return bayesianize(
            network,
            config.prior,
            posterior=config.posterior,
            overrides=config.prior_overrides,
            include=config.bayesian.include,
            exclude=config.bayesian.exclude,
            estimator=config.bayesian.estimator,
            output=config.network.output,
        )


def try_out(network: nn.Module, example: Inputs, name: str, output: Output = "auto") -> Tensor:
    """Run the network on an example batch.

    Args:
        network: the plain network.
        example: (k, ...), a few inputs.
        name: of the network, for the message.
        output: which of its outputs the likelihood reads.

    Returns:
        that output.

    Raises:
        ConfigError: with the reason, if the network fails.
    """
    try:
        found = call(network, example)
    except Exception as error:  # whatever the user's network raises
        reason = str(error).splitlines()[0]
        fix = ""
        if "Long" in reason:
            fix = (
                "; inputs that are indices, such as the numbers of tokens, stay whole with .long() in Python (uint8 are grey "
                "levels, divided by 255), and with data.scaling=none in settings"
            )
        whole = next((str(leaf.dtype) for leaf in leaves(example) if not leaf.is_floating_point()), None)
        if whole and ("dtype" in reason or "should be the same" in reason):
            fix = f"; the inputs are whole numbers ({whole}): convert them with .float(), or set data.scaling, for such a layer"
        shape = example.shape[1:] if isinstance(example, Tensor) else ()
        if looks_channels_last(shape):
            fix = f"; these {CHANNELS_LAST}"
        raise ConfigError(f"network: {name} fails on inputs of {described(example)}: {reason}{fix}") from error
    return chosen(found, output)


@dataclass(frozen=True)
class Experiment:
    """Data, model and likelihood of a configuration.

    >>> experiment = Experiment.build(Config())
    >>> experiment.dataset.name, len(experiment.dataset.train)
    ('digits', 1437)
    """

    config: Config
    dataset: Dataset
    model: BayesianModel
    likelihood: Likelihood

    def __post_init__(self) -> None:
        self.model.likelihood = self.likelihood
        self.model.evaluation_batch = max(self.model.evaluation_batch, self.config.training.batch_size)

    @classmethod
    def build(
        cls,
        config: Config,
        *,
        inputs_only: bool = False,
        dataset: Dataset | None = None,
        network: nn.Module | None = None,
    ) -> "Experiment":
        """Read the data and build the network, unless they are given.

        Args:
            config: the configuration.
            inputs_only: allow missing targets, which become zeros; for a receiver that decodes the labels later.
            dataset: used in place of the configuration's data.
            network: used in place of the configuration's network.

        Returns:
            the experiment, with all settings that depend on the data resolved.
        """
        if dataset is None:
            dataset = config.data.load_inputs() if inputs_only else config.data.load()
            check_declared(config, dataset)
        if (data := config.data.settled(dataset)) is not config.data:
            config = config.model_copy(update={"data": data})
        if config.data.chooses_sections:
            config = suited(config, dataset)
        if not inputs_only:
            config, dataset = with_classes(config, dataset)
        likelihood = config.likelihood.build(dataset.classes, dataset.train.targets)
        _check_mask(likelihood, dataset)
        config = config.model_copy(update={"training": config.training.settled(len(dataset.train), likelihood)})
        for examples in (dataset.train, dataset.test):
            if examples is not None:
                likelihood.check_split(examples.targets, examples.name)
        # a network of the user's may accept whole batches only
        count = 2 if config.network.kind not in ("factory", "given") else min(config.training.batch_size, len(dataset.train))
        inputs, targets = dataset.train.batch(slice(0, count))  # the likelihood raises if shapes do not fit
        outputs = likelihood.outputs(dataset.train.targets)

        def check(output: torch.Tensor) -> None:
            likelihood.bits(output, targets)
            likelihood.predict(output)  # it finds the axis of the classes without the targets

        model = build_model(config, inputs, outputs, check=check, network=network)
        model.chosen_grid_step = config.ledger.grid_step
        found = cls(config, dataset, model, likelihood)
        if config.data.predicts_inputs:
            with model.sample(seed=config.seed):
                found.check_causal()
        return found

    def check_channels(self) -> None:
        """Raise ConfigError if the first convolution takes the rows of images with channels last for their channels."""
        example = self.dataset.train.inputs[:1]
        shape: Sequence[int] = example.shape[1:] if isinstance(example, Tensor) else ()
        first = next((layer for layer in self.model.network.modules() if isinstance(layer, nn.Conv2d)), None)
        if first is not None and looks_channels_last(shape) and first.in_channels == shape[0]:
            raise ConfigError(
                f"network: the first Conv2d would take inputs of shape {tuple(shape)} for images of {shape[0]} channels; these "
                f"{CHANNELS_LAST}"
            )

    @torch.no_grad()
    def check_causal(self) -> None:
        """Raise ConfigError if outputs depend on tokens that they predict, with the weights that the model holds now."""
        few = self.dataset.train.subset(torch.arange(min(2, len(self.dataset.train))))  # not all windows, to a device
        tokens, _ = few.to(self.model.device, self.model.dtype).batch(slice(0, 2))
        assert isinstance(tokens, Tensor)
        classes, length = self.likelihood.outputs(self.dataset.train.targets), tokens.shape[1]
        with evaluating(self.model.network):
            outputs = self.model.outputs(tokens)
            for last in sorted({-1, 0, length // 2, length - 2}):  # -1: all tokens of the other window
                changed = tokens.clone()
                changed[:1, last + 1 :] = (changed[:1, last + 1 :] + 1) % classes
                row, end = (slice(1, None), length) if last < 0 else (slice(0, 1), last + 1)
                before, after = outputs[row, :end], self.model.outputs(changed)[row, :end]
                if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(outputs.abs().max())):
                    what = "the tokens of other windows" if last < 0 else f"the tokens behind position {last}"
                    raise ConfigError(
                        f"the network looks ahead: its outputs change with {what}, which it has to predict; use a causal one, "
                        "such as network: {kind: lstm} or {kind: transformer}"
                    )

    def _watched(self, watch: Callable[[int, BayesianModel], None] | None) -> Callable[[int, BayesianModel], None] | None:
        """Return a callback of training that checks at steps 1, 2, 4, ... whether the network of a text looks ahead by now."""
        if not self.config.data.predicts_inputs:
            return watch

        def look(step: int, model: BayesianModel) -> None:
            if step & (step - 1) == 0:
                self.check_causal()
            if watch is not None:
                watch(step, model)

        return look

    def double(self) -> "Experiment":
        """Return the same experiment in float64, on the CPU."""
        cpu, data = torch.device("cpu"), self.dataset
        test = data.test.to(cpu, torch.float64) if data.test is not None else None
        dataset = replace(data, train=data.train.to(cpu, torch.float64), test=test)
        return Experiment(self.config, dataset, self.model.double(), self.likelihood.double())

    def train(
        self,
        directory: Path | None,
        *,
        resume: bool = False,
        progress: bool = True,
        profile: bool = False,
        loggers: Sequence[Logger] = (),
        watch: Callable[[int, BayesianModel], None] | None = None,
    ) -> Outcome:
        """Train the model, and write the run.

        Args:
            directory: of the run; None writes nothing.
            resume: continue from the directory's checkpoint.
            progress: show a progress bar.
            profile: write a profile of training steps to ``directory``/profile.
            loggers: as :func:`bitsback.training.train` takes them.
            watch: as :func:`bitsback.training.train` takes it.

        Returns:
            ledger, test error and facts of the training.
        """
        return train(
            self.model,
            self.likelihood,
            self.dataset,
            directory=directory,
            config_text=to_yaml(self.config),
            training=self.config.training,
            ledger=self.config.ledger,
            logging=self.config.logging,
            engine=self.config.engine,
            seed=self.config.seed,
            resume=resume,
            progress=progress,
            profile_to=directory / "profile" if profile and directory is not None else None,
            loggers=loggers,
            watch=self._watched(watch),
        )


def _check_mask(likelihood: Likelihood, dataset: Dataset) -> None:
    """Raise DataError if the data hold a mask, and the likelihood would code what it leaves out."""
    if MASK_NOTE in dataset.train.assumed and likelihood.ignore != NOT_CODED:
        raise DataError(
            f"{dataset.name} holds a mask, which makes targets that are not coded {NOT_CODED}; set "
            f"likelihood.ignore={NOT_CODED}, or name another array by data.mask"
        )


@dataclass(frozen=True)
class Run(Results):
    """Run directory written by ``bitsback train`` or :func:`bitsback.train`.

    Attributes:
        config: the resolved configuration of the training.
        network: the plain network, for a run trained in Python on a network that its configuration cannot name.
        dataset: the data, for a run trained in Python on data that its configuration cannot name.
    """

    config: Config
    network: nn.Module | None = None
    dataset: Dataset | None = None

    def course(self) -> Course:
        """Return the number of training steps and the data bits of the last epochs.

        Returns:
            steps and data bits; no data bits if images were augmented, since the ledger is taken on the unchanged images.

        Raises:
            RunError: if ``metrics.jsonl`` cannot be read.
        """
        lines = (self.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-LAST_EPOCHS:]
        try:
            metrics = [json.loads(line) for line in lines]
            data_bits = tuple(float(one["data_bits"]) for one in metrics) if self.config.training.augment is None else ()
            return Course(int(metrics[-1]["step"]) if metrics else 0, data_bits)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.directory / 'metrics.jsonl'} cannot be read; it was changed since the training") from error

    def take_ledger(self, *, samples: int | None = None, seed: int | None = None, progress: bool = False) -> Ledger:
        """Take the ledger again from the weights of the last checkpoint.

        Args:
            samples: whole-network weight draws; default: the configuration's.
            seed: of the draws; default: the configuration's.
            progress: show a bar if it takes more than two seconds.

        Returns:
            the new ledger; the run directory is not changed.
        """
        e, settings = self.experiment(), self.config.ledger
        return take_ledger(
            e.model,
            e.likelihood,
            e.dataset.train,
            samples=samples or settings.samples,
            seed=self.config.seed if seed is None else seed,
            grid_step=settings.grid_step,
            progress=progress,
            course=self.course(),
        )

    def _checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read tensors and facts of the last checkpoint."""
        path = self.directory / "checkpoint" / "state.safetensors"
        try:
            return read_checkpoint(path)
        except DamagedFileError as error:
            hint = f"; or go on from the checkpoint before: bitsback train {self.directory} --resume"
            raise RunError(f"{error}{hint if path.with_name(PREVIOUS).exists() else ''}") from error

    def check_repeatable(self) -> None:
        """Raise RunError if the run was trained by an earlier release, whose training steps this one cannot repeat."""
        if self._checkpoint()[1]["format"] != FORMAT:
            raise RunError(
                f"{self.directory} was trained by an earlier release, and a receiver cannot repeat that, so no payload would "
                "come back; train it anew with another --out (pack and --code two_part can use it as it is)"
            )

    def experiment(self) -> Experiment:
        """Return the experiment with the weights of the last checkpoint; raises RunError if they do not fit its network."""
        network = None if self.network is None else copy.deepcopy(self.network)
        dataset = self.dataset and replace(self.dataset, in_memory=True)
        experiment = Experiment.build(self.config, dataset=dataset, network=network)
        path, (tensors, _) = self.directory / "checkpoint" / "state.safetensors", self._checkpoint()
        if self.config.training.precision == "float64":
            experiment = experiment.double()
        try:
            load_weights(tensors, experiment.model, experiment.likelihood)
        except RuntimeError as error:
            raise RunError(f"{path} does not fit {self.directory / 'config.yaml'}; one of them was changed") from error
        return experiment


def load_run(directory: str | Path, *, network: nn.Module | None = None, dataset: Any = None) -> Run:
    """Open a run directory.

    Args:
        directory: written by ``bitsback train`` or :func:`bitsback.train`.
        network: the plain, untrained network, for a run trained in Python on a given network.
        dataset: the data, for a run trained in Python on given data, in the form in which training took them.

    Returns:
        the run.

    Raises:
        RunError: if the directory is not that of a run, or the data have another number of examples than the run's.
    """
    path = open_results(directory).directory
    config = load_config(path / "config.yaml")
    if isinstance(config.likelihood, GaussianLikelihoodSettings) and "standardise" not in config.likelihood.model_fields_set:
        # written by a release that did not standardise targets
        old = config.likelihood.model_copy(update={"standardise": False})
        config = config.model_copy(update={"likelihood": old})
    if dataset is None:
        return Run(path, config, network)
    data = dataset if isinstance(dataset, Dataset) else Dataset("in memory", source(dataset), None)
    wanted = config.data.examples if isinstance(config.data, GivenDataSettings) else 0
    if wanted and wanted != len(data.train):
        raise RunError(f"{path} was trained on {wanted:,} examples, and the data have {len(data.train):,}; give the run's own")
    return Run(path, config, network, data)


def open_source(source: Config | Run | str | Path, overrides: Sequence[str] = ()) -> Config | Run:
    """Open a run directory, or read a YAML file, or a file or folder of data.

    Args:
        source: path of one; a configuration or run is returned as it is.
        overrides: ``key=value``, for a YAML file only.

    Returns:
        the run or the configuration.

    Raises:
        ConfigError: for overrides of a run, whose configuration is fixed.
    """
    if not isinstance(source, str | Path):
        return source
    if not is_run(Path(source)):
        return read_config(source, overrides)
    if overrides:
        raise ConfigError("a run keeps its configuration; leave the overrides out, or give a YAML file")
    return load_run(source)
