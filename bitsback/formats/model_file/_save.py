"""Save a model that was made in Python, without a configuration, as a model file."""

from pathlib import Path
from typing import Any

import torch

from bitsback.atomic_io import check_new_file, write_bytes
from bitsback.config import Config, Experiment
from bitsback.config.coding_settings import PackSettings
from bitsback.config.given_experiment import default_likelihood, likelihood_settings
from bitsback.config.network import FactorySettings, SequentialSettings
from bitsback.config.schema import BayesianSettings
from bitsback.data import Dataset, Examples, source
from bitsback.errors import LayerError
from bitsback.formats.model_file._network_description import described_network
from bitsback.formats.model_file.write import Packed, pack_experiment
from bitsback.likelihoods import CategoricalLikelihood, Likelihood
from bitsback.likelihoods import registry as likelihoods
from bitsback.likelihoods.given import checked_likelihood
from bitsback.model import BayesianModel
from bitsback.model.modes import evaluating

__all__ = ["save"]


def save(
    model: BayesianModel | Experiment,
    path: str | Path,
    examples: Any = None,
    *,
    likelihood: Likelihood | None = None,
    factory: str | None = None,
    arguments: dict[str, Any] | None = None,
    settings: PackSettings | None = None,
    progress: bool = True,
) -> Packed:
    """Write a model file; :func:`bitsback.load` reads it. The model is changed to the weights of the file.

    Args:
        model: a model from :func:`bitsback.bayesianize`, or an experiment.
        path: path of the new file.
        examples: training examples, already preprocessed, in anything that :func:`bitsback.data.source` takes: they give the
            shape of the inputs, and tuning trains on them. Not needed with an experiment.
        likelihood: default: that of the training; without one categorical, with as many classes as the network has outputs.
        factory: ``package.module:function`` that makes the network; not needed for an ``nn.Sequential`` of torch's layers,
            which the file describes itself (its layers are then named as in YAML: linear1, conv2d1, ...).
        arguments: keyword arguments of the factory.
        settings: codec, budget and tuning; default: those of an empty configuration.
        progress: show progress bars.

    Returns:
        the bytes of the file, and the codec, sizes and errors measured on the decoded file.

    Raises:
        LayerError: if the file cannot describe the network, or examples are missing.
        FileError: if the path exists or the budget is too small.

    >>> import torch, tempfile, bitsback
    >>> model = bitsback.bayesianize(torch.nn.Sequential(torch.nn.Linear(4, 3)), prior="laplace")
    >>> examples = Examples(torch.randn(50, 4), torch.randint(3, (50,)))
    >>> place = tempfile.mkdtemp() + "/model.bb"
    >>> packed = save(model, place, examples, progress=False)
    >>> bitsback.load(place)(examples.inputs).shape
    torch.Size([50, 3])
    """
    check_new_file(Path(path))
    experiment = (
        model
        if isinstance(model, Experiment)
        else _experiment(model, None if examples is None else source(examples), likelihood, factory, arguments or {})
    )
    packed = pack_experiment(experiment, settings, progress=progress)
    write_bytes(Path(path), packed.content)
    return packed


def _experiment(
    model: BayesianModel,
    examples: Examples | None,
    likelihood: Likelihood | None,
    factory: str | None,
    arguments: dict[str, Any],
) -> Experiment:
    if examples is None:
        raise LayerError("give examples: save(model, path, Examples(inputs, targets)); they say what the inputs look like")
    likelihood = model.likelihood if likelihood is None else checked_likelihood(likelihood)
    if likelihood is None:
        inputs, targets = examples.batch(slice(0, min(model.evaluation_batch, len(examples))))
        with torch.no_grad(), evaluating(model.network), model.mean():
            likelihood = default_likelihood(model.outputs(inputs), targets, examples.labels)
        likelihood.check_split(examples.targets, examples.name)
    likelihood.fit(examples.targets)
    network: SequentialSettings | FactorySettings
    if factory is None:
        network, exclude = described_network(model)
    else:
        network = FactorySettings(factory=factory, arguments=arguments, output=model.output)
        exclude = tuple(name for name, _ in model.deterministic())
    config = Config(
        network=network,
        prior=model.prior_settings,
        prior_overrides=model.override_settings,
        bayesian=BayesianSettings(exclude=exclude),
        likelihood=likelihoods[likelihood.kind].model_validate(likelihood_settings(likelihood)),
    )
    count = likelihood.classes if isinstance(likelihood, CategoricalLikelihood) else None
    return Experiment(config, Dataset("in memory", examples, None, count, in_memory=True), model, likelihood)
