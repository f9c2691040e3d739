"""f_c′: the student's linear classifier on the embedding."""

from torch import Tensor, nn


class LinearClassifier(nn.Module):
    """Embeddings (N×D) to logits (N×`n_way`); the softmax is left to whoever needs it.

    Weights start from N(0, 0.01²), the bias from zero, as the papers have it.
    """

    def __init__(self, embedding_dim: int, n_way: int):
        super().__init__()
        self.linear = nn.Linear(embedding_dim, n_way)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)
