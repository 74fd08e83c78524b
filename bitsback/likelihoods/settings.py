"""Settings of the likelihoods, importable without torch."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, PositiveFloat, field_validator, model_validator

from bitsback.data.settings import LabelValues
from bitsback.errors import ConfigError, DataError
from bitsback.factories import FactoryName, made_by
from bitsback.likelihoods._class_weights import NO_WEIGHTS, WEIGHTS
from bitsback.registry import GradientLearn, Registry, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from bitsback.likelihoods._counts import NegativeBinomialLikelihood, PoissonLikelihood
    from bitsback.likelihoods._real import GaussianLikelihood
    from bitsback.likelihoods.base import Likelihood
    from bitsback.likelihoods.classes import BernoulliLikelihood, CategoricalLikelihood, TokensLikelihood

__all__ = [
    "AnyLikelihoodSettings",
    "BernoulliSettings",
    "CategoricalSettings",
    "ClassSettings",
    "GaussianLikelihoodSettings",
    "GivenLikelihoodSettings",
    "LikelihoodSettings",
    "NegativeBinomialSettings",
    "Noise",
    "OwnLikelihoodSettings",
    "PoissonSettings",
    "TokensSettings",
    "registry",
]

Noise = Literal["fixed", "learned", "predicted"]
"""Noise std of real targets: given, one learned number, or an output of the network."""


registry: Registry[type["LikelihoodSettings"]] = Registry("likelihood")
"""Likelihoods by kind."""


Ignored = Annotated[int | None, Field(description="value of targets that are not coded, such as -100; default: all are coded")]
"""A value that marks positions."""


class LikelihoodSettings(Settings):
    """Settings of a likelihood."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _no_weights(cls, values: Any) -> Any:
        if isinstance(values, dict) and any(name in values for name in WEIGHTS):
            raise ValueError(NO_WEIGHTS)
        return values

    @abstractmethod
    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "Likelihood":
        """Make the likelihood.

        Args:
            classes: number of distinct labels in the data, or None if they are not labels.
            targets: (n, ...), training targets to fit to, or None.

        Returns:
            the likelihood.
        """

    def resolved(self, likelihood: "Likelihood") -> Self:
        """Return the settings with the results of :meth:`Likelihood.fit` written out, for files."""
        return self


class ClassSettings(LikelihoodSettings):
    """Settings of a likelihood of labels that are one of several classes."""

    classes: int | None = Field(None, ge=2, description="number of classes; default: number of distinct labels in the data")
    class_names: tuple[str, ...] | None = Field(None, description="names of the classes in predictions")
    labels: LabelValues | None = Field(
        None,
        description="labels in the data, whole numbers or texts, in the order of the network's outputs; default: 0, 1, 2, ... "
        "if the number of classes is declared, else the distinct labels of the data, sorted",
    )
    ignore: Ignored = None

    def check_labels(self) -> None:
        """Raise DataError unless there are as many labels as classes, all of them different, and each of them coded."""
        if self.labels is None:
            return
        count = self.classes if self.classes is not None else len(self.labels)
        if len(self.labels) != count or len(set(self.labels)) != count:
            raise DataError(f"likelihood.labels has {len(self.labels)} labels for {count} classes; give each class its own")
        if self.ignore in self.labels:
            raise DataError(f"likelihood.ignore {self.ignore} is one of likelihood.labels; take it out of one of them")

    def _count(self, classes: int | None) -> int:
        """Return the number of classes; ``classes`` is used unless the settings have classes or labels."""
        count = self.classes if self.classes is not None else len(self.labels) if self.labels is not None else classes
        if self.class_names is not None and len(self.class_names) != count:
            raise DataError(f"likelihood.class_names has {len(self.class_names)} names for {count} classes; give one for each")
        self.check_labels()
        if count is None:
            raise DataError("the data set does not say how many classes it has; set likelihood.classes")
        return count


@registry.register("categorical")
class CategoricalSettings(ClassSettings):
    """One of several classes at each position, from logits."""

    kind: Literal["categorical"] = "categorical"
    class_axis: int | None = Field(
        None,
        description="axis of the classes in the network's outputs, 1 or -1, the batch counted as 0; default: found by "
        "comparing the shapes of outputs and targets",
    )

    @field_validator("class_axis")
    @classmethod
    def _no_batch(cls, axis: int | None) -> int | None:
        if axis == 0:
            raise ValueError("axis 0 is that of the examples; give that of the classes, such as 1 or -1")
        return axis

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "CategoricalLikelihood":
        """Make the likelihood.

        Args:
            classes: used unless the settings have classes or labels.
            targets: not used.

        Returns:
            the likelihood.

        Raises:
            DataError: for an unknown number of classes, and for labels or names that do not fit it.
        """
        from bitsback.likelihoods.classes import CategoricalLikelihood

        return CategoricalLikelihood(
            self._count(classes), self.labels, names=self.class_names, ignore=self.ignore, class_axis=self.class_axis
        )


@registry.register("tokens")
class TokensSettings(ClassSettings):
    """The next token, from logits (n, t, classes); targets are the token ids (n, t), not shifted."""

    kind: Literal["tokens"] = "tokens"
    classes: int | None = Field(None, ge=2, description="size of the vocabulary; default: number of the network's outputs")
    ignore: int | None = Field(-100, description="value of targets that are not coded, besides the first token of each text")

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "TokensLikelihood":
        """Make the likelihood.

        Args:
            classes: used unless the settings have classes or labels.
            targets: not used.

        Returns:
            the likelihood.

        Raises:
            DataError: for an unknown number of classes, and for labels or names that do not fit it.
        """
        from bitsback.likelihoods.classes import TokensLikelihood

        return TokensLikelihood(self._count(classes), self.labels, names=self.class_names, ignore=self.ignore)


@registry.register("bernoulli")
class BernoulliSettings(LikelihoodSettings):
    """Independent binary targets, from logits."""

    kind: Literal["bernoulli"] = "bernoulli"
    ignore: Ignored = None

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "BernoulliLikelihood":
        """Make the likelihood.

        Args:
            classes: not used.
            targets: not used.

        Returns:
            the likelihood.
        """
        from bitsback.likelihoods.classes import BernoulliLikelihood

        return BernoulliLikelihood(ignore=self.ignore)


@registry.register("poisson")
class PoissonSettings(LikelihoodSettings):
    """Counts, from log rates."""

    kind: Literal["poisson"] = "poisson"
    ignore: Ignored = None

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "PoissonLikelihood":
        """Make the likelihood.

        Args:
            classes: not used.
            targets: not used.

        Returns:
            the likelihood.
        """
        from bitsback.likelihoods._counts import PoissonLikelihood

        return PoissonLikelihood(ignore=self.ignore)


@registry.register("negative_binomial")
class NegativeBinomialSettings(LikelihoodSettings):
    """Counts that vary more than Poisson's, from log means; one dispersion for all."""

    kind: Literal["negative_binomial"] = "negative_binomial"
    dispersion: PositiveFloat = Field(
        10.0, description="r, the initial value if it is learned; counts of mean m have variance m + m^2 / r"
    )
    learn: GradientLearn = Field("gradient", description="gradient (one number, charged); none (r is fixed)")
    ignore: Ignored = None

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "NegativeBinomialLikelihood":
        """Make the likelihood.

        Args:
            classes: not used.
            targets: not used.

        Returns:
            the likelihood.
        """
        from bitsback.likelihoods._counts import NegativeBinomialLikelihood

        return NegativeBinomialLikelihood(self.dispersion, learn=self.learn, ignore=self.ignore)


@registry.register("gaussian")
class GaussianLikelihoodSettings(LikelihoodSettings):
    """Real targets on a grid, with Gaussian noise that is fixed, learned, or predicted by the network."""

    kind: Literal["gaussian"] = "gaussian"
    std: PositiveFloat | None = Field(
        None,
        description="noise std in the targets' units, its initial value if learned; default: a tenth of the targets' std",
    )
    noise: Noise = Field(
        "learned", description="fixed; learned (one number, charged); predicted (the network outputs mean and log std)"
    )
    target_step: PositiveFloat | None = Field(
        None,
        description="grid step of the targets, in their units, which makes the bits absolute; default: the coarsest power of "
        "ten or two of which all targets are multiples, at least 2^-16 of their std",
    )
    standardise: bool = Field(
        True, description="train on targets of mean 0 and std 1, with mean and std charged; results are in the targets' units"
    )

    shift_bits: Literal[16, 32] | None = Field(
        None, description="bits of the targets' mean; default: 16, or 32 if it is more than about 64 stds from zero"
    )

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "GaussianLikelihood":
        """Make the likelihood.

        Args:
            classes: not used.
            targets: (n, ...), training targets to fit to, or None.

        Returns:
            the likelihood.
        """
        from bitsback.likelihoods._real import GaussianLikelihood

        made = GaussianLikelihood(
            self.std, noise=self.noise, target_step=self.target_step, standardise=self.standardise, shift_bits=self.shift_bits
        )
        if targets is not None:
            made.fit(targets)
        return made

    def resolved(self, likelihood: "Likelihood") -> "GaussianLikelihoodSettings":
        """Return the settings with step and bits of the shift written out."""
        from bitsback.likelihoods._real import GaussianLikelihood

        assert isinstance(likelihood, GaussianLikelihood)
        found: dict[str, Any] = {"target_step": likelihood.target_step}
        if self.standardise:
            found["shift_bits"] = int(likelihood.grids()["shift"].bits_each)
        return self.model_copy(update=found)


class OwnLikelihoodSettings(LikelihoodSettings):
    """A likelihood of your own: a function that receives the number of classes, or None, and returns a Likelihood."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the function")

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "Likelihood":
        """Call the function.

        Args:
            classes: first argument of the function.
            targets: (n, ...), training targets to fit to, or None.

        Returns:
            the likelihood.
        """
        from bitsback.likelihoods.base import Likelihood

        found: Likelihood = made_by(self.factory, "likelihood.factory", Likelihood, "a Likelihood", classes, **self.arguments)
        if targets is not None:
            found.fit(targets)
        return found


class GivenLikelihoodSettings(LikelihoodSettings):
    """A likelihood that was passed in from Python, of a class outside this package."""

    kind: Literal["given"] = "given"
    of: str = Field("Likelihood", description="class of the likelihood")

    def build(self, classes: int | None, targets: "Tensor | None" = None) -> "Likelihood":
        """Refuse: the configuration does not describe the likelihood.

        Args:
            classes: not used.
            targets: not used.

        Returns:
            nothing.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"the likelihood, a {self.of}, was handed over in Python, and the configuration does not say how it is made; name "
            "a function that returns it: likelihood: {kind: factory, factory: package.module:function}"
        )


if TYPE_CHECKING:
    AnyLikelihoodSettings = LikelihoodSettings
else:
    AnyLikelihoodSettings = Annotated[
        Union[(*registry.members(), OwnLikelihoodSettings, GivenLikelihoodSettings)], Field(discriminator="kind")
    ]
"""Settings of any likelihood, distinguished by ``kind``."""
