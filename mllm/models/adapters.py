"""Maps a tower's many tokens to the few that the decoder reads, and to vectors of the shared space.

The Q-Former is BLIP-2's idea (Li et al., 2023, arXiv:2301.12597): learned queries that attend to
each other and to the tower. Ours is pre-norm, uses PyTorch's fused attention, and its queries start distinct;
`mllm bench qformer` measures it against the transformers one.

Notation: W windows, T tower tokens, Q queries, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init


class Attention(nn.Module):
    """Multi-head attention of x over context, through scaled_dot_product_attention."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"qformer width {width} is not a multiple of its {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query = self.query(x).view(batch, length, self.heads, -1).transpose(1, 2)
        key, value = (
            self.key_value(context).view(batch, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).reshape(batch, length, width))


class QFormerLayer(nn.Module):
    """Self-attention among queries, cross-attention to the tower, feed-forward; all pre-norm."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, context_width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, normed)
        x = x + self.cross_attention(self.cross_norm(x), context)
        return x + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(x))))


class QFormer(nn.Module):
    """Learned queries that read one window of a tower: [W, T, context_width] -> [W, Q, D]."""

    def __init__(self, queries: int, width: int, layers: int, heads: int, context_width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.context_norm = nn.LayerNorm(context_width)
        self.layers = nn.ModuleList(QFormerLayer(width, context_width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self.reset_queries()

    def reset_queries(self) -> None:
        # Equal queries would get equal gradients and stay equal for ever.
        init.normal_(self.queries, mean=0.0, std=1.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        context = self.context_norm(features)
        x = self.queries.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                # Not re-entrant: with frozen towers below, the re-entrant kind drops gradients silently.
                x = torch.utils.checkpoint.checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        return self.norm(x)


class Projector(nn.Module):
    """Projects query outputs to the decoder's embedding width: [..., D] -> [..., hidden].

    Outputs have the norm of the decoder's word embeddings (`match`). Without this norm they grew to twenty
    times that, and drowned whatever the decoder's layers added to such a token (docs/log.md).
    """

    def __init__(self, width: int, hidden_size: int):
        super().__init__()
        self.linear_in = nn.Linear(width, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear_out(functional.gelu(self.linear_in(x)))
        return self.norm(x.to(self.norm.weight.dtype))  # the dtypes differ under autocast

    @torch.no_grad()
    def match(self, embeddings: torch.Tensor) -> None:
        """Sets the norm of outputs to the average of these token embeddings [vocabulary, hidden]."""
        self.norm.weight.fill_(embeddings.float().square().mean().sqrt())


class EmbeddingHead(nn.Module):
    """Maps the windows of a clip to one unit vector of the shared space.

    The queries of a window are concatenated (a mean would blur what each has found); a learned position
    embedding of the window is added before the non-linearity, so the mean over windows keeps their order.
    """

    def __init__(self, queries: int, width: int, embedding_dim: int, max_windows: int):
        super().__init__()
        self.norm = nn.LayerNorm(queries * width)
        self.linear_in = nn.Linear(queries * width, embedding_dim)
        self.place = nn.Embedding(max_windows, embedding_dim)
        self.linear_out = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, query_outputs: torch.Tensor, windows_per_clip: torch.Tensor) -> torch.Tensor:
        """[W, Q, D] -> [clips, embedding_dim]; windows_per_clip [clips] sums to W, 0 gives a zero vector."""
        clips = len(windows_per_clip)
        clip_of_window = torch.repeat_interleave(windows_per_clip)
        first = windows_per_clip.cumsum(0) - windows_per_clip
        place = torch.arange(len(query_outputs), device=query_outputs.device) - first[clip_of_window]
        hidden = self.linear_in(self.norm(query_outputs.flatten(1))) + self.place(
            place.clamp(max=self.place.num_embeddings - 1)
        )
        windows = self.linear_out(functional.gelu(hidden)).float()
        summed = windows.new_zeros(clips, windows.shape[1]).index_add(0, clip_of_window, windows)
        return functional.normalize(summed, dim=-1)
