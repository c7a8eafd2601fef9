"""The table that `mllm bench serve` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def table_of(numbers: dict[str, Any]) -> Table:
    """A row for each measurement: vLLM, Hugging Face, their ratio and its spread over the rounds."""
    from rich.table import Table

    table = Table("", "vLLM", "Hugging Face", "vLLM is", "by CPU", box=None, pad_edge=False)
    for one in numbers.get("fixed", []):
        best = one["hugging_face_best"]
        table.add_row(
            f"tokens/s, {one['at_a_time']} at a time × {one['tokens']} tokens",
            _rate(one["vllm"]),
            f"{_rate(one['hugging_face'])}  {best['dtype']}, {_threads(best['threads'])}",
            spread(one["ratio"]),
            times(one["cpu_ratio"]),
        )
    if mixed := numbers.get("mixed"):
        first, last = mixed["lengths"]
        for limit, met in mixed["requests_per_second_within"].items():
            table.add_row(
                f"requests/s of {first}–{last} tokens, p95 ≤ {limit} s",
                *(_met(met[name], mixed["rates"]) for name in ("vllm", "hugging_face")),
                _times_met(met, mixed["rates"]),
            )
    for kind, words in (("cold", "first token, new 4 s video"), ("again", "first token, asked again")):
        if kind in numbers.get("media", {}):
            one = numbers["media"][kind]
            cells = [
                f"{one[name]['seconds'] * 1000:.0f} ms ({one[name]['cpu_ms']:.0f} ms CPU)"
                for name in ("vllm", "hugging_face")
            ]
            table.add_row(words, *cells, spread(one["ratio"]))
    return table


def notes_of(numbers: dict[str, Any]) -> str:
    """Notes below the table: model, machine, engine settings."""
    machine = numbers["machine"]
    others = machine["others_cores"]
    lines = [
        f"{numbers['checkpoint']}; {numbers['rounds']} rounds, engines in turn; in brackets CPU ms a token "
        "of all processes of the engine",
        f"{machine['cpus']} CPUs, load {machine['load_before']:.1f} before and {machine['load_after']:.1f} "
        f"after; other programs used {others['median']:.2f} cores (at most {others['max']:.2f})",
        f"vLLM {numbers['vllm']['settings'] or 'as it was started'}",
    ]
    if first := numbers.get("media", {}).get("very_first"):
        lines.append(f"the very first question about a video was answered after {first * 1000:.0f} ms")
    if machine["busy"]:
        lines.append("THE MACHINE WAS BUSY: wall times say more of it than of the engines; compare CPU")
    return "\n".join(lines)


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})"


def times(ratio: float | None) -> str:
    return f"{ratio:.2f}×" if ratio else ""


def _rate(one: dict[str, Any]) -> str:
    return f"{one['tokens_per_second']:,.0f} ({one['cpu_ms_per_token']:.2f})"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _met(rate: float, rates: list[float]) -> str:
    return f"{rate:g}" if rate else f"below {min(rates):g}"


def _times_met(met: dict[str, float], rates: list[float]) -> str:
    if met["hugging_face"]:
        return f"{met['vllm'] / met['hugging_face']:.1f}×"
    return f"over {met['vllm'] / min(rates):.1f}×" if met["vllm"] else ""
