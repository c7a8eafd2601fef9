"""`mllm bench qformer`: why the Q-Former is our own (see `adapters.py`), measured."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.table import Table
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mllm.command.bench import JsonOption, report
from mllm.errors import ConfigError
from mllm.models.adapters import QFormer


class QFormerSize(NamedTuple):
    """Sizes of a Q-Former and of what it reads: `windows` of `tokens` tower tokens, `context_width` wide."""

    queries: int
    width: int
    layers: int
    heads: int
    tokens: int
    context_width: int
    windows: int


SIZES = {
    "nano": QFormerSize(queries=6, width=96, layers=1, heads=4, tokens=129, context_width=96, windows=32),
    "base": QFormerSize(queries=32, width=768, layers=2, heads=12, tokens=1569, context_width=768, windows=2),
}


class BlipQFormer(nn.Module):
    """The transformers Q-Former (BLIP-2, arXiv:2301.12597) with its queries, which BLIP-2 keeps outside."""

    def __init__(self, size: QFormerSize, frequency: int, dropout: float, spread: float):
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            encoder_hidden_size=size.context_width,
            cross_attention_frequency=frequency,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.layers = Blip2QFormerModel(config)
        self.queries = nn.Parameter(torch.randn(1, size.queries, size.width) * spread)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[windows, tokens, context_width] -> [windows, queries, width]"""
        queries = self.queries.expand(len(features), -1, -1)
        return self.layers(query_embeds=queries, encoder_hidden_states=features).last_hidden_state


def bench_qformer(
    size: Annotated[str, typer.Option(help=f"{' or '.join(SIZES)}.")] = "nano",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed, after two that are not.")] = 10,
    json_file: JsonOption = None,
) -> None:
    """Our Q-Former beside the transformers one: parameters, time, how far apart queries start."""
    if size not in SIZES:
        raise ConfigError(f"no Q-Former size '{size}': choose from {', '.join(SIZES)}")
    rows = measure(SIZES[size], steps)
    table = Table("Q-Former", "parameters", "ms a step", "time", "query cosine", "output cosine", box=None)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['ms_per_step']:.1f}",
            f"{row['ms_per_step'] / rows[0]['ms_per_step']:.2f}×",
            f"{row['query_cosine']:.2f}",
            f"{row['output_cosine']:.2f}",
        )
    note = "cosine: mean over pairs of different queries at the start; 1.00 never separates"
    report(table, {"size": SIZES[size]._asdict(), "rows": rows}, json_file, note)


def measure(size: QFormerSize, steps: int) -> list[dict[str, Any]]:
    """A row per Q-Former, ours first: name, parameters, ms_per_step (median), query_ and output_cosine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    modules = {
        "ours": QFormer(size.queries, size.width, size.layers, size.heads, size.context_width),
        "transformers, same depth and start": BlipQFormer(size, frequency=1, dropout=0.0, spread=1.0),
        "transformers, as BLIP-2 builds it": BlipQFormer(size, frequency=2, dropout=0.1, spread=0.0),
    }
    times: dict[str, list[float]] = {name: [] for name in modules}
    # As in training, where the tower below wants its gradient.
    features = torch.randn(size.windows, size.tokens, size.context_width, device=device, requires_grad=True)
    for _ in range(steps + 2):  # in turn, so that other load on the machine affects all of them equally
        for name, module in modules.items():
            module.to(device).train()
            begin = time.perf_counter()
            module(features).square().mean().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
            module.zero_grad(set_to_none=True)
    rows = []
    for name, module in modules.items():
        with torch.no_grad():
            outputs = module.eval()(features)
        rows.append(
            {
                "name": name,
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "ms_per_step": 1000 * statistics.median(times[name][2:]),
                "query_cosine": pairwise_cosine(module.get_parameter("queries")[0]),
                "output_cosine": pairwise_cosine(outputs[0]),
            }
        )
    return rows


def pairwise_cosine(rows: torch.Tensor) -> float:
    """Mean cosine over pairs of different rows of [rows, width]; equal rows, zeros too, have 1."""
    rows = rows.detach().double()
    if len(rows) < 2 or torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-7):
        return 1.0
    unit = nn.functional.normalize(rows, dim=-1)
    cosines = unit @ unit.T
    return float((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1)))
