"""f_c′: the student's linear classifier on the embedding."""

import torch
from torch import Tensor, nn


class LinearClassifier(nn.Module):
    """Embeddings (N×D) to logits (N×`n_way`).

    Weights are initialised from N(0, 0.01²) and the bias with 0, as in the papers.
    """

    def __init__(self, embedding_dim: int, n_way: int):
        super().__init__()
        self.linear = nn.Linear(embedding_dim, n_way)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def load(self, weights: Tensor) -> None:
        """Start from weights and biases, `n_way`×(D+1)."""
        self.linear.weight.copy_(weights[:, :-1])
        self.linear.bias.copy_(weights[:, -1])

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.linear(embeddings)
