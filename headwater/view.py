"""The demo in a terminal: a live table while it runs, a summary at its end."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from headwater.demo import DemoSummary, Status

__all__ = ["LiveView", "summary"]

_COLOURS = {"headwater": "bold cyan", "popularity": "yellow", "random": "magenta"}
_BAR_WIDTH = 40


class LiveView:
    """Shows the demo's status; on something that is no terminal, one line for each phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._phase = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Show it."""
        if self._live is not None:
            self._live.update(_panel(status))
        elif status.phase != self._phase:
            self._console.print(f"[{status.elapsed_s:5.0f} s] {status.phase}", markup=False, highlight=False)
        self._phase = status.phase


def _panel(status: Status) -> RenderableType:
    facts = Table.grid(padding=(0, 3))
    counts = status.counts
    facts.add_row(
        f"{status.events_per_s:,.0f} events/s", f"{counts['impressions']:,} impressions", f"{counts['clicks']:,} clicks"
    )
    facts.add_row(
        f"{counts['recommendations']:,} slates",
        f"{counts['settled']:,} transitions",
        f"{counts['dead-letters']} dead letters",
    )
    latency = status.latency_ms
    facts.add_row(
        f"model {status.model_version}",
        ", ".join(f"{name} {value:.3f}" for name, value in status.metrics.items() if name.startswith("td_error")),
        f"click → slate p50 {latency.get('p50', 0):.0f} ms, p99 {latency.get('p99', 0):.0f} ms",
    )
    return Panel(
        Group(facts, *([""] if status.rates else []), *([_rates(status.rates)] if status.rates else [])),
        title=f"headwater demo: {status.phase}",
        subtitle=f"{status.elapsed_s:.0f} s, round {status.rounds}",
    )


def _rates(rates: Any) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("arm", "click rate", "95 % interval", ""):
        table.add_column(heading)
    highest = max((rate.high for rate in rates.values()), default=0.0) or 1.0
    for arm, rate in rates.items():
        bar = "█" * round(rate.value / highest * _BAR_WIDTH)
        table.add_row(arm, f"{rate.value:.4f}", f"{rate.low:.4f} – {rate.high:.4f}", bar, style=_COLOURS.get(arm, ""))
    return table


def summary(result: DemoSummary) -> RenderableType:
    """The end of the demo, for people."""
    rates = {**result.click_rate, "popularity by count": result.popularity_by_count, "oracle": result.oracle}
    gap, latency, check = result.gap_closed_interval, result.latency_ms, result.aa_check
    told = f"""\
{result.data}: {result.users} people, {result.rounds} rounds each, {result.broker} broker, {result.seconds:.0f} s.
{result.impressions:,} impressions and {result.clicks:,} clicks in, {result.events_per_s:,.0f} events/s;
{result.recommendations:,} slates and {result.transitions:,} transitions out; {result.dead_letters} dead letters.
Model version {result.model_version}; click → fresh slate p50 {latency["p50"]:.0f} ms, p99 {latency["p99"]:.0f} ms.
Headwater closes {result.gap_closed:.0%} of the gap between popularity and an oracle ({gap.low:.0%} – {gap.high:.0%}).
A/A check: two halves of the popularity arm differ by {check.difference:+.4f} (p = {check.p_value:.2f}).
"""
    return Panel(Group(told, _rates(rates)), title="headwater demo")
