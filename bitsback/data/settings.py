"""Settings of data sources and feature maps, importable without torch and numpy."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from bitsback.data._column import ColumnKind, ColumnName, ColumnSettings
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
    "ColumnSettings",
    "DataSettings",
    "DeskewSettings",
    "DigitsSettings",
    "FeatureSettings",
    "FriedmanSettings",
    "GivenDataSettings",
    "GradientHistogramSettings",
    "IdxSettings",
    "ImagesSettings",
    "LabelValues",
    "NpzSettings",
    "OwnDataSettings",
    "PerInputSettings",
    "PrincipalComponents",
    "RandomWalkModes",
    "TableSettings",
    "TableSplit",
    "TextSettings",
    "registry",
]

LabelValues = tuple[int | str, ...]
"""Labels as they appear in the data, in the order of the classes."""


class FeatureSettings(Settings):
    """Settings of a feature map."""

    kind: str

    @property
    def is_fitted(self) -> bool:
        """Return whether the map depends on the training inputs."""
        return True

    @abstractmethod
    def fit(self, inputs: "Tensor") -> "Map":
        """Fit the feature map to training inputs.

        Args:
            inputs: training inputs, (n, ...).

        Returns:
            Function from any such inputs, (m, ...), to their features, (m, ...).
        """


class PerInputSettings(FeatureSettings):
    """Settings of a map of each input by itself, with nothing to fit."""

    @property
    def is_fitted(self) -> bool:
        """Return False."""
        return False

    def fit(self, inputs: "Tensor") -> "Map":
        """Return the map; ``inputs`` are not used."""
        from bitsback.data._feature_map import in_pieces

        return in_pieces(self.map)

    @abstractmethod
    def map(self, images: "Tensor") -> "Tensor":
        """Return the features of some inputs (n, ...)."""


class DeskewSettings(PerInputSettings):
    """Images centred and sheared to remove their slant, from their own moments.

    The shear is the covariance of the two coordinates over the variance of the vertical one, with the image's grey levels as
    mass (LeCun et al. 1998, section III.A, "deslanting"). With ``height`` and ``width`` the size of the mass is normalised as
    well. Every image is treated by itself, in one resampling: nothing is fitted.
    """

    kind: Literal["deskew"] = "deskew"
    height: PositiveFloat | None = Field(
        None, description="target std of the mass along the vertical axis, in pixels; default: not stretched"
    )
    width: PositiveFloat | None = Field(None, description="target std along the horizontal axis, after the shear")
    height_share: float = Field(
        0.8, ge=0, le=1, description="share of the stretch, on a log scale: 0: none, 1: to the target height"
    )
    width_share: float = Field(0.4, ge=0, le=1, description="share of the stretch along the horizontal axis")

    def map(self, images: "Tensor") -> "Tensor":
        """Return images of the same shape.

        Args:
            images: (n, channels, height, width), grey levels of zero or more.

        Returns:
            the images, centred and upright.

        >>> DeskewSettings(height=3.0).fit(torch.empty(0))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
        """
        from bitsback.data._deskew import deskewed

        return deskewed(images, self)


class GradientHistogramSettings(PerInputSettings):
    """Local histograms of gradient orientations (Dalal & Triggs 2005), as distances of pixels carry less information.

    Each channel is blurred, its gradients are distributed over ``orientations`` directions, and each direction is averaged
    under Gaussian windows ``cell`` pixels apart. Square roots of the averages, normalised to length one, are the features:
    their distance is then the Hellinger distance. Nothing is fitted.
    """

    kind: Literal["gradient_histograms"] = "gradient_histograms"
    orientations: PositiveInt = Field(8, le=256, description="number of directions of a histogram")
    cell: PositiveInt = Field(4, description="pixels between the windows, whose std is 0.6 of it")
    focus: PositiveFloat = Field(2.0, description="exponent of the cosine by which a gradient is weighted for a direction")

    def map(self, images: "Tensor") -> "Tensor":
        """Return the histograms.

        Args:
            images: (n, channels, height, width).

        Returns:
            (n, k), each row of length one.

        >>> GradientHistogramSettings(cell=4).fit(torch.empty(0))(torch.rand(2, 1, 16, 16)).shape
        torch.Size([2, 72])
        """
        from bitsback.data._gradients import gradient_histograms

        return gradient_histograms(images, self)


class PrincipalComponents(FeatureSettings):
    """Coordinates along the directions of largest variance of the training inputs (Pearson 1901)."""

    kind: Literal["principal_components"] = "principal_components"
    features: PositiveInt = Field(20, description="number of directions")

    def fit(self, inputs: "Tensor") -> "Map":
        """Fit the directions.

        Args:
            inputs: (n, ...), training inputs.

        Returns:
            map from inputs (n, ...) to (n, features).

        >>> PrincipalComponents(features=2).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
        torch.Size([3, 2])
        """
        from bitsback.data._features import principal_components

        return principal_components(inputs, self)


class RandomWalkModes(FeatureSettings):
    """Coordinates in the slowest modes of a random walk over the training inputs (diffusion maps, Coifman & Lafon 2006).

    The walk steps from x to y with probability proportional to exp(-sharpness |x - y|^2 / (r(x) r(y))), where r is the
    distance to a point's ``neighbours``-th neighbour (Zelnik-Manor & Perona 2004). It stays within clusters for long, so its
    slow modes separate clusters without labels. The first mode is constant and serves as a bias. An input that is not in the
    graph gets the average of the modes around it (Nystroem).
    """

    kind: Literal["random_walk_modes"] = "random_walk_modes"
    features: PositiveInt = Field(13, description="number of modes, the constant one included")
    neighbours: PositiveInt = Field(7, description="index of the neighbour whose distance is a point's reach")
    sharpness: PositiveFloat = Field(8.0, description="decay of the probability of a step with squared distance")
    edges: PositiveInt | None = Field(
        None,
        description="number of nearest neighbours that steps go to, needed for more than 6,000 inputs; default: all points",
    )

    def graph(self, inputs: "Tensor") -> "DenseGraph | SparseGraph":
        """Return the graph of the walk; raises DataError for too few inputs, and for too many without ``edges``."""
        from bitsback.data._features import walk_graph

        return walk_graph(inputs, self)

    def fit(self, inputs: "Tensor") -> "Map":
        """Fit the modes.

        Args:
            inputs: (n, ...), training inputs.

        Returns:
            map from inputs (n, ...) to (n, features).

        >>> modes = RandomWalkModes(features=3).fit(torch.randn(60, 4))
        >>> modes(torch.randn(5, 4)).shape
        torch.Size([5, 3])
        """
        from bitsback.data._features import random_walk_modes

        return random_walk_modes(inputs, self)


class Chain(FeatureSettings):
    """Several maps in sequence, each fitted to the output of the one before."""

    kind: Literal["chain"] = "chain"
    maps: tuple["AnyFeatures", ...] = Field(min_length=1, description="feature maps, in the order in which they are applied")

    @property
    def is_fitted(self) -> bool:
        """Return whether any of the maps depends on the training inputs."""
        return any(one.is_fitted for one in self.maps)

    def fit(self, inputs: "Tensor") -> "Map":
        """Fit the maps in order.

        Args:
            inputs: (n, ...), training inputs.

        Returns:
            the composed map.

        >>> maps = (PrincipalComponents(features=4), RandomWalkModes(features=2, neighbours=3))
        >>> Chain(maps=maps).fit(torch.randn(50, 8))(torch.randn(3, 8)).shape
        torch.Size([3, 2])
        """
        from bitsback.data._features import chain_of

        return chain_of(inputs, self)


AnyFeatures = Annotated[
    Union[PrincipalComponents, RandomWalkModes, DeskewSettings, GradientHistogramSettings, Chain], Field(discriminator="kind")  # noqa: UP007
]


registry: Registry[type["DataSettings"]] = Registry("data source")
"""Data sources by kind."""


class DataSettings(Settings):
    """Base class of data source settings.

    Attributes:
        chooses_sections: whether sections that a configuration leaves out are chosen by what the data are.
        predicts_inputs: whether the targets of a position are inputs of later ones, so that a network must not look ahead.
    """

    chooses_sections: ClassVar[bool] = False
    predicts_inputs: ClassVar[bool] = False
    kind: str
    limit: int | None = Field(None, ge=1, description="number of training examples to use, drawn by split_seed; default: all")
    split_seed: int = Field(0, ge=0, description="seed of the random splits: limit, prior_fraction and test_fraction")
    prior_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training examples, drawn by split_seed, that is reserved for learning a prior",
    )
    part: Literal["prior", "posterior"] | None = Field(
        None, description="prior: train on the reserved examples; posterior: on all others; default: on all"
    )
    scaling: Literal["auto", "unit", "centred", "standard", "none"] = Field(
        "auto",
        description="auto: unit for 8-bit images, standard for all other numbers (none where the network begins with an "
        "Embedding, and for lstm and transformer, whose tokens stay whole: set standard for their vectors); unit: divided by "
        "the largest possible value; centred: the training mean is subtracted, then as unit; "
        "standard: each feature has mean 0 and std 1 over the training inputs, which the receiver holds too; none: as stored",
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.prior_fraction is None) != (self.part is None):
            raise ValueError("prior_fraction and part: prior | posterior go together; give both, or neither")
        return self

    @abstractmethod
    def load(self) -> "Dataset":
        """Read the examples; raises DataError with advice if that is not possible."""

    def load_inputs(self) -> "Dataset":
        """Read the examples as :meth:`load`, with missing targets replaced by zeros."""
        return self.load()

    def settled(self, dataset: "Dataset") -> Self:
        """Return the settings with what was found in the data written out: the scaling that ``auto`` means."""
        if self.scaling != "auto" or dataset.scaling is None:
            return self
        return self.model_copy(update={"scaling": dataset.scaling})

    fraction_bits: int | None = Field(
        None,
        ge=0,
        le=20,
        description="round inputs to multiples of 2^-fraction_bits, so that features computed on other machines are equal",
    )
    features: AnyFeatures | None = Field(None, description="feature map, fitted without labels; default: none")

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
        """Apply ``limit``, ``part``, ``scaling`` and ``features``, in this order, to the examples that were read.

        Args:
            name: of the source.
            train: examples as they were read.
            test: examples as they were read, or None.
            largest: largest grey level of such images.
            are_images: whether the inputs are images, whose grey levels ``auto`` scales to [0, 1].
            classes: number of classes that the source declares.
            texts: labels that whole-number targets are indices of.

        Returns:
            the data set.
        """
        from bitsback.data._dataset import finished

        return finished(self, name, train, test, largest=largest, are_images=are_images, classes=classes, texts=texts)


@registry.register("digits")
class DigitsSettings(DataSettings):
    """8 x 8 handwritten digits, 1,797 examples, in the package."""

    kind: Literal["digits"] = "digits"
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of examples held out")

    def load(self) -> "Dataset":
        """Read the digits."""
        from bitsback.data._digits import load_digits

        return load_digits(self)


@registry.register("friedman")
class FriedmanSettings(DataSettings):
    """Friedman's regression benchmark, generated when it is loaded."""

    kind: Literal["friedman"] = "friedman"
    examples: PositiveInt = Field(1000, description="number of examples, test examples included")
    inputs: int = Field(10, ge=5, description="inputs per example; the targets depend on five")
    noise_std: NonNegativeFloat = Field(1.0, description="std of the noise on the targets")
    data_seed: int = Field(0, ge=0, description="seed of inputs and noise")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of examples held out")

    def load(self) -> "Dataset":
        """Generate the examples."""
        from bitsback.data._friedman import load_friedman

        return load_friedman(self)


@registry.register("idx")
class IdxSettings(DataSettings):
    """MNIST's format: four files in one directory, each plain or .gz."""

    kind: Literal["idx"] = "idx"
    root: FilePath = Field(Path("data/mnist"), description="directory of the four files")
    train_images: str = Field("train-images-idx3-ubyte", description="file of the training images")
    train_labels: str = Field("train-labels-idx1-ubyte", description="file of the training labels")
    test_images: str = Field("t10k-images-idx3-ubyte", description="file of the test images")
    test_labels: str = Field("t10k-labels-idx1-ubyte", description="file of the test labels")

    def load(self) -> "Dataset":
        """Read the four files."""
        from bitsback.data.idx import load_idx

        return load_idx(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        """Read the files, with missing labels replaced by zeros."""
        from bitsback.data.idx import load_idx

        return load_idx(self, inputs_only=True)


@registry.register("images")
class ImagesSettings(DataSettings):
    """A folder or ZIP file of images: a folder for each class, FOLDER/CLASS, or FOLDER/train/CLASS and FOLDER/test/CLASS.

    The classes are numbered in the order of their sorted names. The images are put in the order of the SHA-256 of their files,
    so that their order says nothing of the labels, and a receiver of the labels may hold them in one folder, under any names.
    """

    chooses_sections: ClassVar[bool] = True

    kind: Literal["images"] = "images"
    path: FilePath = Field(description="the folder, or the ZIP file, which is read in place")
    size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="crop each image to the square in its centre, and resample it bilinearly to size x size pixels; default: "
        "as they are, all of one size",
    )
    channels: Literal[1, 3, 4] | None = Field(
        None,
        description="convert all images to grey levels (1), colours (3) or colours and opacity (4); default: 1 if all are "
        "grey, 3 if all are in colour",
    )
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share held out where there is no folder of test images")

    def settled(self, dataset: "Dataset") -> Self:
        """Return the settings with the number of channels that the images have."""
        shape = dataset.train.inputs.shape
        update = {"channels": shape[1]} if self.channels is None and len(shape) == 4 else {}
        return super().settled(dataset).model_copy(update=update)

    def load(self) -> "Dataset":
        """Read the images, and their classes from the names of their folders."""
        from bitsback.data._images import load_images

        return load_images(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        """Read the images, whose folders need not be classes; targets are zeros."""
        from bitsback.data._images import load_images

        return load_images(self, inputs_only=True)


@registry.register("npz")
class NpzSettings(DataSettings):
    """Arrays named ``inputs`` and ``targets`` (and, for a fixed test split, ``test_inputs`` and ``test_targets``).

    Targets are texts or whole numbers, which a categorical likelihood takes for labels, or real numbers; a one-column target
    array is flattened. Inputs of type uint8 are grey levels; with ``scaling: none`` whole-number inputs remain whole, as an
    Embedding needs them.

    An array ``mask`` (and ``test_mask``), of the shape of the targets, says which of them are coded: 1 or true, and 0 or false
    for those that are not. They become -100, so that ``likelihood.ignore`` has to be -100. A receiver holds the mask as it
    holds the inputs.
    """

    kind: Literal["npz"] = "npz"
    path: FilePath = Field(description="the .npz file")
    inputs: str = Field("inputs", description="name of the array of inputs, (n, ...)")
    targets: str = Field("targets", description="name of the array of targets, (n,) or (n, ...)")
    test_inputs: str = Field("test_inputs", description="name of the array of test inputs")
    test_targets: str = Field("test_targets", description="name of the array of test targets")
    mask: str = Field(
        "mask", description="name of the array, if there is one, that is 1 where a target is coded and 0 where it is not"
    )
    test_mask: str = Field("test_mask", description="name of that array for the test targets")
    channels: Literal["first", "last"] = Field(
        "first",
        description="last: inputs are images (n, height, width, channels), and are permuted to (n, channels, height, width)",
    )
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share held out when the file has no test arrays")

    def load(self) -> "Dataset":
        """Read the arrays."""
        from bitsback.data._npz import load_npz

        return load_npz(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        """Read the arrays, with missing targets, and all those beside a mask, replaced by zeros; -100 where not coded."""
        from bitsback.data._npz import load_npz

        return load_npz(self, inputs_only=True)


class TableSplit(Settings):
    """Choice of the rows that are held out for the test error."""

    test: float | None = Field(None, ge=0, lt=1, description="share of rows held out, drawn by split_seed; default: 0.2")
    column: ColumnName | None = Field(None, description="name of a column that says train or test, which is no input")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.test is not None and self.column is not None:
            raise ValueError("give a share of test rows, {test: 0.2}, or a column that says train or test, {column: NAME}")
        return self


@registry.register("table")
class TableSettings(DataSettings):
    """A table in a .csv, .tsv or .parquet file: one column is the target, all others are inputs.

    Columns are numbers, yes_no (true and false), or categories (texts). Numbers are scaled to mean 0 and std 1; a missing value
    becomes the mean, and one more input says where values were missing. Levels, means and stds are those of the training rows.
    Columns that hold one value are left out.
    """

    chooses_sections: ClassVar[bool] = True
    kind: Literal["table"] = "table"
    path: FilePath = Field(description="the .csv, .tsv or .parquet file")
    target: ColumnName | None = Field(None, description="name of the column to predict")
    drop: Annotated[
        tuple[ColumnName, ...], BeforeValidator(lambda given: [given] if isinstance(given, str | int) else given)
    ] = Field((), description="names of columns that are no inputs")
    split: TableSplit = TableSplit()
    types: dict[ColumnName, ColumnKind] = Field(
        default_factory=dict, description="number, yes_no or category by column, where it is not to be found in the values"
    )
    categories: Literal["one_hot", "embedding"] = Field(
        "one_hot",
        description="one_hot: an input of 0 or 1 for each level, all 0 for an unseen one; embedding: the network gets numbers "
        "(n, k) and categories (n, c), in which 0 is an unseen level",
    )
    missing: tuple[ColumnName, ...] = Field(
        ("NA", "NaN", "nan", "NULL", "null"), description="texts of a .csv file that mean a missing value, as empty ones do"
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="between the values of a .csv file; default: the one of , ; tab | in its head",
    )
    decimal: Literal[".", ","] = Field(".", description="decimal point of the numbers of a .csv file")
    encoding: str = Field("utf-8", description="of the text of a .csv file, such as latin-1")
    columns: tuple[ColumnSettings, ...] = Field(
        (), description="of the inputs, in order, as a run writes them out; default: found in the training rows"
    )

    @model_validator(mode="after")
    def _one_tensor(self) -> Self:
        if self.features is not None and self.categories == "embedding":
            raise ValueError("features are made of one tensor of numbers; set categories: one_hot, or leave features out")
        return self

    def load(self) -> "Dataset":
        """Read the table."""
        from bitsback.data.table import load_table

        return load_table(self, inputs_only=False)

    def load_inputs(self) -> "Dataset":
        """Read the table, with missing targets replaced by zeros."""
        from bitsback.data.table import load_table

        return load_table(self, inputs_only=True)

    def settled(self, dataset: "Dataset") -> Self:
        """Return the settings with the columns and the kind of the target written out."""
        if not dataset.columns or self.columns:
            return super().settled(dataset)
        target = {} if self.target is None else {self.target: "category" if dataset.has_texts else "number"}
        found = {"columns": dataset.columns, "types": {**target, **self.types}}
        return super().settled(dataset).model_copy(update=found)


@registry.register("text")
class TextSettings(DataSettings):
    """A text file, of which every token is predicted from those before it in its window.

    The tokens are cut into windows of ``context`` tokens. Inputs are the token before each target, 0 before the first of a
    window; targets are all tokens, each of them once and in order, and -100, which is not coded, behind the last one. The bits
    of a network and of all targets are therefore those of the whole text: ``send --code two_part`` writes them as a file,
    which ``receive`` turns into the text.
    """

    chooses_sections: ClassVar[bool] = True
    predicts_inputs: ClassVar[bool] = True
    kind: Literal["text"] = "text"
    path: FilePath = Field(description="the text file")
    tokens: Literal["bytes", "characters"] = Field(
        "characters", description="characters: those of UTF-8 text; bytes: of any file"
    )
    context: int = Field(256, ge=2, le=1 << 16, description="tokens of a window; nothing before it helps to predict")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share of the windows held out, those at the end of the text")

    @model_validator(mode="after")
    def _not_scaled(self) -> Self:
        if self.features is not None or self.fraction_bits is not None or self.scaling not in ("auto", "none"):
            raise ValueError("tokens are not scaled; leave scaling, features and fraction_bits of a text out")
        return self

    def load(self) -> "Dataset":
        """Read the text."""
        from bitsback.data.text_windows import load_text

        return load_text(self)


class OwnDataSettings(DataSettings):
    """Data of your own: a function that returns a Dataset, whose inputs are scaled and limited as those of other sources."""

    kind: Literal["factory"] = "factory"
    factory: FactoryName
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")

    def load(self) -> "Dataset":
        """Call the function, and apply ``limit``, ``part``, ``scaling`` and ``features`` to the data set it returns."""
        from bitsback.data._dataset import Dataset

        made: Dataset = made_by(self.factory, "data.factory", Dataset, "a Dataset", **self.arguments)
        return self.finish(made.name, made.train, made.test, classes=made.classes)


class GivenDataSettings(DataSettings):
    """Data that were passed in from Python; to open the run, pass them again: load_run(RUN, dataset=...)."""

    kind: Literal["given"] = "given"
    name: str = Field("in memory", description="name of the data set")
    examples: int = Field(0, ge=0, description="number of training examples")

    def load(self) -> "Dataset":
        """Raise DataError: the configuration does not describe the data."""
        raise DataError(
            f"the data '{self.name}' ({self.examples:,} examples) were handed over in Python, and the configuration does not "
            "say where they are; open the run with bitsback.load_run(RUN, network=..., dataset=...)"
        )


if TYPE_CHECKING:
    AnyDataSettings = DataSettings
else:
    AnyDataSettings = Annotated[Union[(*registry.members(), OwnDataSettings, GivenDataSettings)], Field(discriminator="kind")]
"""Settings of any data source, distinguished by ``kind``."""
