"""Embedding of tokens."""

from torch import Tensor, nn

from bitsback.errors import ConfigError

__all__ = ["embedded"]


def embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """Return the embeddings of tokens.

    Args:
        embedding: of the vocabulary.
        tokens: (n, L), whole numbers.

    Returns:
        (n, L, width).

    Raises:
        ConfigError: for a token that is not in the vocabulary.
    """
    try:
        return embedding(tokens)
    except IndexError as error:
        raise ConfigError(
            f"the inputs hold tokens from {int(tokens.min())} to {int(tokens.max())}, and the network knows those from 0 to "
            f"{embedding.num_embeddings - 1}; set network.vocabulary to the largest token plus one"
        ) from error
