"""A long short-term memory over tokens or vectors."""

from typing import Literal

from torch import Tensor, nn

from bitsback.networks._tokens import embedded

__all__ = ["LSTM"]


class LSTM(nn.Module):
    """Layers of long short-term memory (Hochreiter & Schmidhuber 1997) and a dense layer over their states.

    Outputs at a position depend on it and on the positions before it.

    Args:
        inputs: number of distinct tokens, or numbers of a vector if ``embedding`` is 0.
        outputs: number of outputs.
        embedding: width of a token's embedding; 0: inputs are vectors.
        width: units of each layer.
        layers: number of layers.
        per: ``position``: outputs at each position; ``sequence``: outputs at the last position alone.

    Attributes:
        embedding: nn.Embedding, or None for vectors.
        lstm: nn.LSTM, the batch first.
        head: nn.Linear.

    >>> import torch
    >>> LSTM(inputs=7, outputs=7, embedding=4, width=8)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 7])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int = 64,
        width: int = 128,
        layers: int = 1,
        per: Literal["position", "sequence"] = "position",
    ) -> None:
        super().__init__()
        self.per = per
        self.embedding = nn.Embedding(inputs, embedding) if embedding else None
        self.lstm = nn.LSTM(embedding or inputs, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, steps: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            steps: (n, L), tokens, or (n, L, k), vectors.

        Returns:
            (n, L, outputs), or (n, outputs) per sequence.
        """
        states, _ = self.lstm(steps if self.embedding is None else embedded(self.embedding, steps))
        return self.head(states if self.per == "position" else states[:, -1])
