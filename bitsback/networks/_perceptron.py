"""A multilayer perceptron for rows of numbers, of categories, or of both."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bitsback.errors import ConfigError

__all__ = ["MLP", "embedding_width"]


def embedding_width(values: int) -> int:
    """Return the width of the embedding of a category: half of its number of values, rounded up, at most 50.

    >>> [embedding_width(values) for values in (1, 2, 7, 1000)]
    [1, 1, 4, 50]
    """
    return min(50, (values + 1) // 2)


class MLP(nn.Module):
    """Dense layers over the numbers of an example and embeddings of its categories (Guo & Berkhahn 2016).

    The network is called by the names of its inputs, so its data are a dict with ``numbers``, (n, k) and real, and
    ``categories``, (n, c) and whole: column i holds values from 0 to ``categories[i]`` - 1.

    Args:
        numbers: k, columns of numbers; 0: the data have none.
        categories: number of values of each column of categories.
        outputs: number of outputs.
        hidden: units of each hidden layer.
        activation: name of a layer of torch.nn behind each hidden layer.
        embedding: width of each embedding; default: half of the number of values, at most 50.

    Attributes:
        embeddings: an nn.Embedding for each column of categories.
        layers: an nn.Sequential of Linear and activation layers; the last is Linear.

    >>> network = MLP(numbers=2, categories=[3, 4], outputs=1, hidden=[8])
    >>> network(torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.long)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "ReLU",
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        widths = [embedding or embedding_width(values) for values in categories]
        self.embeddings = nn.ModuleList(nn.Embedding(values, width) for values, width in zip(categories, widths, strict=True))
        self.layers = nn.Sequential()
        for size, units in pairwise([numbers + sum(widths), *hidden]):
            self.layers.extend([nn.Linear(size, units), getattr(nn, activation)()])
        self.layers.append(nn.Linear(hidden[-1] if hidden else numbers + sum(widths), outputs))

    def forward(self, numbers: Tensor | None = None, categories: Tensor | None = None) -> Tensor:
        """Return the outputs.

        Args:
            numbers: (n, k), or None if the network takes none.
            categories: (n, c), whole numbers, or None if the network takes none.

        Returns:
            (n, outputs).
        """
        parts = [] if numbers is None else [numbers]
        if categories is not None:
            parts += [self._embedded(column, categories[:, column]) for column in range(len(self.embeddings))]
        return self.layers(torch.cat(parts, 1))

    def _embedded(self, column: int, values: Tensor) -> Tensor:
        """Return the embedding of one column; raises ConfigError for a value that it does not have."""
        embedding = self.embeddings[column]
        try:
            return embedding(values)
        except IndexError as error:
            known = self.embeddings[column].num_embeddings
            raise ConfigError(
                f"column {column} of the categories has values from {int(values.min())} to {int(values.max())}, and "
                f"network.categories says that they go from 0 to {known - 1}; number them so"  # type: ignore[operator]
            ) from error
