"""The settings of every data source and of the maps of its inputs, without torch and numpy."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from bitsback.errors import DataError
from bitsback.factories import FactoryName, made_by
from bitsback.registry import FilePath, Registry, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from bitsback.data._dataset import Dataset, Examples
    from bitsback.data._feature_map import Map
    from bitsback.data.graph import DenseGraph, SparseGraph

__all__ = [
    "AnyDataSettings",
    "AnyFeatures",
    "Chain",
    "DataSettings",
    "DeskewSettings",
    "DigitsSettings",
    "FeatureSettings",
    "FriedmanSettings",
    "GivenDataSettings",
    "GradientHistogramSettings",
    "IdxSettings",
    "LabelValues",
    "NpzSettings",
    "OwnDataSettings",
    "PerInputSettings",
    "PrincipalComponents",
    "RandomWalkModes",
    "registry",
]

LabelValues = tuple[int | str, ...]
"""Labels as they stand in the data, in the order of the classes."""


class FeatureSettings(Settings):
    """Settings of a feature map."""

    kind: str

    @property
    def is_fitted(self) -> bool:
        """Whether the map depends on the training inputs."""
        return True

    @abstractmethod
    def fit(self, inputs: "Tensor") -> "Map":
        """The map from inputs (n, ...) to features (n, k), made from the training inputs."""


class PerInputSettings(FeatureSettings):
    """Settings of a map that treats every input by itself: nothing is fitted."""

    @property
    def is_fitted(self) -> bool:
        return False

    def fit(self, inputs: "Tensor") -> "Map":
        from bitsback.data._feature_map import in_pieces

        return in_pieces(self.map)

    @abstractmethod
    def map(self, images: "Tensor") -> "Tensor":
        """The features of some inputs (n, ...)."""


class DeskewSettings(PerInputSettings):
    """Images moved to the centre of their mass and sheared until columns no longer lean, from their own moments.

    The shear is the covariance of the two coordinates over the variance of the vertical one, under the image's grey levels as
    a mass (LeCun et al. 1998, section III.A, "deslanting"). With ``height`` and ``width`` the size of the mass is evened out as
    well. Every image is treated by itself, in one resampling: nothing is fitted.

    >>> DeskewSettings(height=3.0).fit(torch.empty(0))(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    kind: Literal["deskew"] = "deskew"
    height: PositiveFloat | None = Field(None, description="std of the mass down the rows that images are stretched to, pixels")
    width: PositiveFloat | None = Field(None, description="the same along the columns, after the shear")
    height_share: float = Field(0.8, ge=0, le=1, description="how far: 0 not at all, 1 all the way, in the logarithm")
    width_share: float = Field(0.4, ge=0, le=1, description="the same along the columns")

    def map(self, images: "Tensor") -> "Tensor":
        from bitsback.data._deskew import deskewed

        return deskewed(images, self)


class GradientHistogramSettings(PerInputSettings):
    """Local histograms of gradient orientations (Dalal & Triggs 2005), whose distances mean more than those of pixels.

    Each channel is blurred, its gradients are shared out among ``orientations`` directions, and each direction is averaged
    under Gaussian windows ``cell`` pixels apart. Square roots of the averages, at length one, are the features: their distance
    is then the Hellinger distance. Nothing is fitted.

    >>> GradientHistogramSettings(cell=4).fit(torch.empty(0))(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 72])
    """

    kind: Literal["gradient_histograms"] = "gradient_histograms"
    orientations: PositiveInt = Field(8, le=256, description="directions that gradients are shared out among")
    cell: PositiveInt = Field(4, description="pixels between the windows; their std is 0.6 of it")
    focus: PositiveFloat = Field(2.0, description="power of the cosine that a gradient counts for a direction with")

    def map(self, images: "Tensor") -> "Tensor":
        from bitsback.data._gradients import gradient_histograms

        return gradient_histograms(images, self)


class PrincipalComponents(FeatureSettings):
    """Coordinates along the directions of largest variance of the training inputs (Pearson 1901).

    >>> PrincipalComponents(features=2).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    kind: Literal["principal_components"] = "principal_components"
    features: PositiveInt = Field(20, description="how many directions")

    def fit(self, inputs: "Tensor") -> "Map":
        from bitsback.data._features import principal_components

        return principal_components(inputs, self)


class RandomWalkModes(FeatureSettings):
    """Coordinates in the slowest modes of a random walk over the training inputs (diffusion maps, Coifman & Lafon 2006).

    The walk steps from x to y with probability proportional to exp(-sharpness |x - y|^2 / (r(x) r(y))), where r is the
    distance to a point's ``neighbours``-th neighbour (Zelnik-Manor & Perona 2004). It lingers inside clusters, so its slow
    modes tell clusters apart without having seen a label. The first mode is constant and serves as a bias. An input that
    is not in the graph gets the average of the modes around it (Nystroem).

    >>> modes = RandomWalkModes(features=3).fit(torch.randn(60, 4))
    >>> modes(torch.randn(5, 4)).shape
    torch.Size([5, 3])
    """

    kind: Literal["random_walk_modes"] = "random_walk_modes"
    features: PositiveInt = Field(13, description="how many modes, the constant one included")
    neighbours: PositiveInt = Field(7, description="the neighbour whose distance is a point's reach")
    sharpness: PositiveFloat = Field(8.0, description="how fast the probability of a step falls with distance")
    edges: PositiveInt | None = Field(
        None, description="steps go to so many nearest neighbours only: for graphs of more than 6,000 inputs; default: to all"
    )

    def graph(self, inputs: "Tensor") -> "DenseGraph | SparseGraph":
        """Return the graph on which the walk goes; raises DataError for too few inputs, and for too many without ``edges``."""
        from bitsback.data._features import walk_graph

        return walk_graph(inputs, self)

    def fit(self, inputs: "Tensor") -> "Map":
        from bitsback.data._features import random_walk_modes

        return random_walk_modes(inputs, self)


class Chain(FeatureSettings):
    """Several maps, one after the other, each made from what the ones before it give.

    >>> maps = (PrincipalComponents(features=4), RandomWalkModes(features=2, neighbours=3))
    >>> Chain(maps=maps).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
    torch.Size([3, 2])
    """

    kind: Literal["chain"] = "chain"
    maps: tuple["AnyFeatures", ...] = Field(min_length=1, description="feature maps, the first one first")

    @property
    def is_fitted(self) -> bool:
        return any(one.is_fitted for one in self.maps)

    def fit(self, inputs: "Tensor") -> "Map":
        from bitsback.data._features import chain_of

        return chain_of(inputs, self)


AnyFeatures = Annotated[
    Union[PrincipalComponents, RandomWalkModes, DeskewSettings, GradientHistogramSettings, Chain], Field(discriminator="kind")  # noqa: UP007
]


registry: Registry[type["DataSettings"]] = Registry("data source")


class DataSettings(Settings):
    """What every data source can be told."""

    kind: str
    limit: int | None = Field(None, ge=1, description="use only this many training examples, drawn by split_seed")
    split_seed: int = Field(0, ge=0, description="seed of the draw behind limit, prior_fraction and test_fraction")
    prior_fraction: float | None = Field(
        None, gt=0, lt=1, description="share of the training examples set apart, by split_seed, to learn a prior from"
    )
    part: Literal["prior", "posterior"] | None = Field(
        None, description="prior: train on the examples set apart; posterior: on all the others; default: on all"
    )
    scaling: Literal["auto", "unit", "centred", "standard", "none"] = Field(
        "auto",
        description="auto: unit for 8-bit images, standard for all other numbers (none where the network begins with an "
        "Embedding); unit: divided by the largest possible value; centred: the same, less the training mean; standard: each "
        "feature has mean 0 and std 1 over the training inputs, which the receiver holds too; none: as stored",
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.prior_fraction is None) != (self.part is None):
            raise ValueError("prior_fraction and part: prior | posterior go together; give both, or neither")
        return self

    @abstractmethod
    def load(self) -> "Dataset":
        """Read the examples; raises DataError with the fix when that is not possible."""

    def load_inputs(self) -> "Dataset":
        """As :meth:`load`, but targets that are not there become zeros."""
        return self.load()

    fraction_bits: int | None = Field(
        None,
        ge=0,
        le=20,
        description="round inputs to multiples of 2^-fraction_bits, so that features made elsewhere are equal",
    )
    features: AnyFeatures | None = Field(None, description="a fixed map of the inputs, made without labels; default: none")

    def finish(
        self,
        name: str,
        train: "Examples",
        test: "Examples | None",
        *,
        largest: float = 1.0,
        are_images: bool = False,
        classes: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> "Dataset":
        """Apply ``limit``, ``part``, ``scaling`` and ``features``, in this order, to what was read.

        Args:
            name, train, test: what was read.
            largest: the largest grey level that images of this kind can have.
            are_images: whether the inputs are images, whose grey levels ``auto`` brings to [0, 1].
            classes: how many classes the source declares.
            texts: what whole-number targets stand for, where the labels are texts.
        """
        from bitsback.data._dataset import finished

        return finished(self, name, train, test, largest=largest, are_images=are_images, classes=classes, texts=texts)


@registry.register("digits")
class DigitsSettings(DataSettings):
    """8 x 8 handwritten digits, 1,797 examples, in the package."""

    kind: Literal["digits"] = "digits"
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of examples held out")

    def load(self) -> "Dataset":
        from bitsback.data._digits import load_digits

        return load_digits(self)


@registry.register("friedman")
class FriedmanSettings(DataSettings):
    """Friedman's regression benchmark, made on the spot."""

    kind: Literal["friedman"] = "friedman"
    examples: PositiveInt = Field(1000, description="how many examples to make, test examples included")
    inputs: int = Field(10, ge=5, description="inputs per example, of which five matter")
    noise_std: NonNegativeFloat = Field(1.0, description="std of the noise on the targets")
    data_seed: int = Field(0, ge=0, description="seed of inputs and noise")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of examples held out")

    def load(self) -> "Dataset":
        from bitsback.data._friedman import load_friedman

        return load_friedman(self)


@registry.register("idx")
class IdxSettings(DataSettings):
    """MNIST's format: four files in one directory, each plain or .gz."""

    kind: Literal["idx"] = "idx"
    root: FilePath = Field(Path("data/mnist"), description="directory of the four files")
    train_images: str = "train-images-idx3-ubyte"
    train_labels: str = "train-labels-idx1-ubyte"
    test_images: str = "t10k-images-idx3-ubyte"
    test_labels: str = "t10k-labels-idx1-ubyte"

    def load(self) -> "Dataset":
        from bitsback.data.idx import load_idx

        return load_idx(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        from bitsback.data.idx import load_idx

        return load_idx(self, inputs_only=True)


@registry.register("npz")
class NpzSettings(DataSettings):
    """Arrays named ``inputs`` and ``targets`` (and, for a fixed test split, ``test_inputs`` and ``test_targets``).

    Targets are texts or whole numbers, which a categorical likelihood takes for labels, or real numbers; a one-column target
    array is flattened. Inputs of type uint8 are grey levels; ``scaling: none`` leaves whole-number inputs whole, as an
    Embedding needs them.
    """

    kind: Literal["npz"] = "npz"
    path: FilePath = Field(description="the .npz file")
    inputs: str = Field("inputs", description="name of the array of inputs, (n, ...)")
    targets: str = Field("targets", description="name of the array of targets, (n,) or (n, d)")
    test_inputs: str = Field("test_inputs", description="name of the array of test inputs")
    test_targets: str = Field("test_targets", description="name of the array of test targets")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share held out when the file has no test arrays")

    def load(self) -> "Dataset":
        from bitsback.data._npz import load_npz

        return load_npz(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        from bitsback.data._npz import load_npz

        return load_npz(self, inputs_only=True)


class OwnDataSettings(DataSettings):
    """Data of your own: a function that returns a Dataset, whose inputs are scaled and limited as those of other sources."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def load(self) -> "Dataset":
        from bitsback.data._dataset import Dataset

        made: Dataset = made_by(self.factory, "data.factory", Dataset, "a Dataset", **self.arguments)
        return self.finish(made.name, made.train, made.test, classes=made.classes)


class GivenDataSettings(DataSettings):
    """Data that a training in Python was given; whoever opens the run gives them again: load_run(RUN, dataset=...)."""

    kind: Literal["given"] = "given"
    name: str = Field("in memory", description="what the data set was called")
    examples: int = Field(0, ge=0, description="how many training examples there were")

    def load(self) -> "Dataset":
        raise DataError(
            f"the data '{self.name}' ({self.examples:,} examples) were handed over in Python, and the configuration does not "
            "say where they are; open the run with bitsback.load_run(RUN, network=..., dataset=...)"
        )


if TYPE_CHECKING:
    AnyDataSettings = DataSettings
else:
    AnyDataSettings = Annotated[Union[(*registry.members(), OwnDataSettings, GivenDataSettings)], Field(discriminator="kind")]
"""The settings of any registered data source, told apart by ``kind``."""
