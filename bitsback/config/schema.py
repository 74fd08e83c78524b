"""The schema of a configuration: the settings of all sections."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from bitsback.config.coding_settings import PackSettings, PrequentialSettings
from bitsback.config.network import FactorySettings, GivenNetworkSettings, SequentialSettings
from bitsback.config.ready_networks import (
    LSTMSettings,
    MLPSettings,
    ResNetSettings,
    TimmSettings,
    TransformerSettings,
    ViTSettings,
)
from bitsback.data.settings import AnyDataSettings, DataSettings, DigitsSettings
from bitsback.layers.estimator import Estimator
from bitsback.likelihoods.settings import AnyLikelihoodSettings, CategoricalSettings
from bitsback.posteriors.settings import GaussianPosteriorSettings, PointPosteriorSettings
from bitsback.priors.settings import AnyPriorSettings, GaussianPriorSettings
from bitsback.registry import Settings
from bitsback.training.settings import EngineSettings, LedgerSettings, LoggingSettings, TrainingSettings

__all__ = ["BayesianSettings", "Config", "json_schema"]
OF_TOKENS = ("lstm", "transformer")
"""Networks that read tokens, which stay whole numbers; vectors stay as they are, too, unless ``scaling`` is set."""

AnyNetworkSettings = Annotated[
    SequentialSettings
    | FactorySettings
    | GivenNetworkSettings
    | MLPSettings
    | LSTMSettings
    | TransformerSettings
    | ResNetSettings
    | ViTSettings
    | TimmSettings,
    Field(discriminator="kind"),
]


class BayesianSettings(Settings):
    """Choice of the weights that get a posterior, and of the gradient estimator in training."""

    include: tuple[str, ...] = Field(("*",), description="weight or module names (shell patterns) that get a posterior")
    exclude: tuple[str, ...] = Field(
        (), description="weight or module names that stay deterministic, charged at 32 bits a weight"
    )
    estimator: Estimator | dict[str, Estimator] = Field(
        "auto",
        description="gradient estimator in training: weight (one weight draw for a batch), output (local reparameterisation: "
        "one draw of the outputs for each example), or auto: output for dense layers if trial forwards show that rows are "
        "examples, else weight; for all layers or by layer kind: {Conv2d: weight, Linear: output}",
    )


class Config(Settings):
    """Complete configuration of a run."""

    data: AnyDataSettings = DigitsSettings()
    network: AnyNetworkSettings = SequentialSettings(layers=("Flatten", "Linear"))
    posterior: Annotated[GaussianPosteriorSettings | PointPosteriorSettings, Field(discriminator="kind")] = (
        GaussianPosteriorSettings()
    )
    prior: AnyPriorSettings = GaussianPriorSettings()
    prior_overrides: dict[str, AnyPriorSettings] = Field(
        default_factory=dict,
        description='other priors by weight-name pattern, {"*.bias": {kind: laplace}}; the first match applies',
    )
    bayesian: BayesianSettings = BayesianSettings()
    likelihood: AnyLikelihoodSettings = CategoricalSettings()
    training: TrainingSettings = TrainingSettings()
    engine: EngineSettings = EngineSettings()
    ledger: LedgerSettings = LedgerSettings()
    logging: LoggingSettings = LoggingSettings()
    pack: PackSettings = PackSettings()
    prequential: PrequentialSettings = PrequentialSettings()
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of initial weights, batches and draws")

    @model_validator(mode="before")
    @classmethod
    def _indices_stay_whole(cls, given: Any) -> Any:
        """Default to ``scaling: none`` if the network begins with an Embedding, or reads sequences: inputs may be indices."""
        data, network = (given.get(name) for name in ("data", "network")) if isinstance(given, dict) else (None, None)
        kind, layers = (
            network.get(key) if isinstance(network, dict) else getattr(network, key, None) for key in ("kind", "layers")
        )
        first = layers[0] if isinstance(layers, list | tuple) and layers else ""
        name = next(iter(first), "") if isinstance(first, dict) else first
        if name not in ("Embedding", "EmbeddingBag") and kind not in OF_TOKENS:
            return given
        if isinstance(data, dict) and data.get("scaling", "auto") == "auto":
            return {**given, "data": {**data, "scaling": "none"}}
        if isinstance(data, DataSettings) and data.scaling == "auto":
            return {**given, "data": data.model_copy(update={"scaling": "none"})}
        return given


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors; every key is optional, ``extends`` is allowed.

    Returns:
        JSON schema, draft 2020-12.

    >>> sorted(json_schema()["properties"])[:4]
    ['bayesian', 'data', 'engine', 'extends']
    """
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "bitsback configuration"
    extends = {"type": "string", "description": "another YAML file whose values this one changes"}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return schema
