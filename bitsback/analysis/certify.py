"""Certificates of runs and model files: upper bounds on the error on new examples.

The inequalities are in :mod:`bitsback.certificates`. This module checks that they apply: neither the prior nor the
preprocessing may depend on the examples on which the risk is measured.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitsback.analysis.sources import RunSource, experiment_of
from bitsback.certificates import Certificate, certify_file, certify_posterior
from bitsback.config import Config, load_run
from bitsback.config.labels import with_classes
from bitsback.data import DataSettings, Preprocessing
from bitsback.errors import BitsbackError, CertificateError
from bitsback.formats.model_file.read import load
from bitsback.model import BayesianModel
from bitsback.priors import PriorSettings
from bitsback.priors.settings import CheckpointPriorSettings
from bitsback.torch_state import using_threads
from bitsback.training.train import threads_for

__all__ = ["certify", "check_preprocessing", "check_priors"]

DRAWS = 150_000
"""Pairs of weight draw and example from which the risk of a posterior is estimated, as in Perez-Ortiz et al. 2021."""


DRAWS_STREAM = 0x0CE4
"""Seed stream of the draws that measure the risk, separate from those of training."""


def certify(
    source: RunSource | str | Path,
    locations: Sequence[str] = (),
    *,
    delta: float = 0.025,
    delta_draws: float = 0.01,
    draws: int = DRAWS,
    alternatives: int = 1,
    seed: int | None = None,
    progress: bool = False,
) -> Certificate:
    """Bound the error on new examples of a run's posterior, or of the network in a model file.

    Args:
        source: a run directory, an opened run, a trained experiment, or a model file.
        locations: for a model file, where its examples are on this machine, such as ``data.root=DIR``.
        delta: probability that the bound fails.
        delta_draws: for a run, probability that the estimate of the risk from draws fails.
        draws: for a run, pairs of weight draw and example, rounded up to whole passes over the examples.
        alternatives: number of priors, networks or certificates tried on the same examples, this one included.
        seed: for a run, of the draws; default: the run's.
        progress: show a progress bar after two seconds.

    Returns:
        The certificate.

    Raises:
        CertificateError: the assumptions of the bound fail.
        FileError: the model file cannot be read.
        DataError: the examples cannot be read.
    """
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return _certify_file(Path(source), locations, delta, alternatives)
    if locations:
        raise CertificateError(f"'{locations[0]}' says a place for a model file; a run knows its places, leave it out")
    return _certify_run(source, delta, delta_draws, draws, alternatives, seed, progress)


def _certify_run(
    run: RunSource | str | Path,
    delta: float,
    delta_draws: float,
    draws: int,
    alternatives: int,
    seed: int | None,
    progress: bool,
) -> Certificate:
    """Certify a run's posterior on its training examples."""
    if isinstance(run, str | Path):
        run = load_run(run)
    config = run.config
    check_priors(config)
    experiment = experiment_of(run)
    check_preprocessing(config.data, experiment.dataset.preprocessing)
    _check_frozen(config, experiment.model)
    with using_threads(threads_for(config.training, experiment.model)):
        return certify_posterior(
            experiment.model,
            experiment.likelihood,
            experiment.dataset.train,
            test=experiment.dataset.test,
            delta=delta,
            delta_draws=delta_draws,
            draws=draws,
            alternatives=alternatives,
            seed=int(np.random.SeedSequence([config.seed if seed is None else seed, DRAWS_STREAM]).generate_state(1)[0]),
            progress=progress,
        )


def _certify_file(path: Path, locations: Sequence[str], delta: float, alternatives: int) -> Certificate:
    """Certify the network in a model file on the training examples that its configuration names, with the prior 2^-length."""
    loaded = load(path, locations)
    named = loaded.tree.get("data", {}).get("kind")
    if named is None:
        raise CertificateError(f"{path} was made in Python and does not say which examples it describes; pack a run instead")
    data = loaded.config.data
    if data.kind != named:
        raise CertificateError(f"say where the '{named}' examples of {path} are: --data.root=DIR or --data.path=FILE")
    if data.features is not None:
        check_preprocessing(data, loaded.preprocessing)
    check_priors(loaded.config)
    stored = data.model_copy(update={"scaling": "none", "features": None, "fraction_bits": None}).load()
    _, stored = with_classes(loaded.config, stored)
    test_risk = None
    if stored.test is not None:
        loaded.likelihood.check_split(stored.test.targets, stored.test.name)
        test_risk = loaded.likelihood.mean_error(loaded.predict(stored.test.in_memory().inputs), stored.test.targets)
    return certify_file(
        loaded.predict(stored.train.in_memory().inputs),
        stored.train.targets,
        loaded.likelihood,
        path.stat().st_size,
        delta=delta,
        alternatives=alternatives,
        test_risk=test_risk,
        assumed=tuple(prior.run.name for prior in _checkpoints(loaded.config)),
    )


def check_preprocessing(data: DataSettings, preprocessing: Preprocessing) -> None:
    """Check that the preprocessing was not fitted to the examples.

    Args:
        data: settings of the data.
        preprocessing: fitted preprocessing.

    Raises:
        CertificateError: the scaling or the features were fitted to the examples.
    """
    if preprocessing.shift.ndim or preprocessing.scale.ndim:
        raise CertificateError(
            f"data.scaling: {data.scaling} takes its numbers from the examples that the risk is measured on, so no prior over "
            "networks comes before them; train with data.scaling: unit"
        )
    if data.features is not None and data.features.is_fitted:
        raise CertificateError(
            f"data.features: {data.features.kind} was made from the examples that the risk is measured on, so no prior over "
            "networks comes before them; train without data.features"
        )


def check_priors(config: Config) -> None:
    """Raise CertificateError unless the settings show that no run behind the prior was trained on the examples."""
    for prior in _checkpoints(config):
        _check_apart(prior.run, config.data, ())


def _check_apart(directory: Path, data: DataSettings, chain: tuple[Path, ...]) -> None:
    """Check that a run was trained on the other part of the same split of the data, and so on none of ``data``."""
    if directory in chain:
        raise CertificateError(f"the prior of {directory} is made from itself; set prior.run to an earlier run")
    try:
        earlier = load_run(directory).config
    except BitsbackError as error:
        raise CertificateError(f"the prior's run cannot be read, so what it has seen is unknown: {error}") from error
    alike = earlier.data.model_dump(exclude={"part"}) == data.model_dump(exclude={"part"})
    if not (alike and {earlier.data.part, data.part} == {"prior", "posterior"}):
        raise CertificateError(
            f"the prior's run {directory} may have seen the examples that the risk is measured on; train it with data.part: "
            "prior and this run with data.part: posterior, all other settings under data equal"
        )
    if earlier.network.pretrained is not None:
        raise CertificateError(
            f"the prior's run {directory} started from {earlier.network.pretrained}, and what that has seen is unknown; train "
            "the prior from scratch"
        )
    for prior in _checkpoints(earlier):
        _check_apart(prior.run, data, (*chain, directory))


def _checkpoints(config: Config) -> list[CheckpointPriorSettings]:
    priors: list[PriorSettings] = [config.prior, *config.prior_overrides.values()]
    return [prior for prior in priors if isinstance(prior, CheckpointPriorSettings)]


def _check_frozen(config: Config, model: BayesianModel) -> None:
    if config.network.pretrained is None:
        return
    learned = {name for name, _ in model.learned_statistics()}
    frozen = [(name, "weights", "give them a posterior") for name, p in model.deterministic() if not p.requires_grad]
    frozen += [(name, "statistics", "put their layer into train mode") for name, _ in model.statistics() if name not in learned]
    for name, what, fix in frozen:
        raise CertificateError(
            f"the frozen {what} '{name}' come from {config.network.pretrained}, and what that has seen is unknown; {fix}, or "
            "pack the run and certify the file, which pays for them"
        )
