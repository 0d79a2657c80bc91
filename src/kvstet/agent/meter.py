"""Tokens and money, step by step. What a provider does not say is unknown, which is not nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from kvstet.money.bill import Bill, Total, bill_of, read_share, total_of
from kvstet.types import Usage

BillOf = Callable[[Usage], Bill]

_unpriced: BillOf = partial(bill_of, price=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request and its reply."""

    number: int
    """Of the reply; a summary has that of the reply before it."""
    bill: Bill
    seconds: float
    first_token_seconds: float | None = None
    is_summary: bool = False


class Meter:
    """Counts the requests of one run."""

    def __init__(self, bill: BillOf = _unpriced, note: Callable[[Step], None] | None = None) -> None:
        """``note`` is told each step: a ledger."""
        self._bill = bill
        self._note = note
        self.steps: list[Step] = []

    def __repr__(self) -> str:
        return f"Meter({total_line(self.steps)!r})"

    def count(
        self, number: int, usage: Usage, seconds: float, first_token_seconds: float | None, *, is_summary: bool
    ) -> Step:
        step = Step(
            number=number,
            bill=self._bill(usage),
            seconds=seconds,
            first_token_seconds=first_token_seconds,
            is_summary=is_summary,
        )
        self.steps.append(step)
        if self._note is not None:
            self._note(step)
        return step


def step_line(step: Step) -> str:
    """One step in a line."""
    name = "summary" if step.is_summary else f"step {step.number}"
    return f"{name}: {_line([step])}"


def total_line(steps: Sequence[Step]) -> str:
    """All steps in a line."""
    return f"total of {len(steps)} request{'' if len(steps) == 1 else 's'}: {_line(steps)}"


def _line(steps: Sequence[Step]) -> str:
    usages = [step.bill.usage for step in steps]
    rate = read_share(usages)
    share = "" if rate is None else f" ({rate:.1%})"
    parts = [
        f"prompt {_number(usage.num_input_tokens for usage in usages)}",
        f"cached {_number(usage.num_cache_read_tokens for usage in usages)}{share}",
        f"written {_number(usage.num_cache_write_tokens for usage in usages)}",
        f"output {_number(usage.num_output_tokens for usage in usages)}",
        _money([step.bill for step in steps]),
        f"{sum(step.seconds for step in steps):.1f} s",
    ]
    return ", ".join(parts)


def _number(values: Iterable[int | None]) -> str:
    given = list(values)
    total = total_of(given)
    if given and total.num_unknown == len(given):
        return "?"
    return f"{total.known:,.0f}" + ("" if total.is_whole else "+?")


def _money(bills: Sequence[Bill]) -> str:
    if bills and all(bill.price is None for bill in bills):
        return "price unknown"
    cost, fresh = total_of(bill.cost for bill in bills), total_of(bill.cost_without_cache for bill in bills)
    if bills and cost.num_unknown == len(bills):
        return "cost unknown"
    unknown = "" if cost.is_whole else f" and {cost.num_unknown} unknown"
    instead = f" (without a cache {_dollars(fresh.known)})" if _is_more(fresh, cost) else ""
    return f"{_dollars(cost.known)}{unknown}{instead}"


def _is_more(one: Total, other: Total) -> bool:
    return one.is_whole and other.is_whole and one.known > other.known


def _dollars(amount: float) -> str:
    return f"${amount:.4f}" if amount else "$0"
