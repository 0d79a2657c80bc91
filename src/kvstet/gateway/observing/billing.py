"""What a request cost, and where that is written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvstet.gateway.passage import Passage
from kvstet.money.bill import Bill, bill_of
from kvstet.money.entry import entry_of
from kvstet.money.ledger import Ledger
from kvstet.providers.prices import price_of
from kvstet.providers.provider import Provider
from kvstet.types import Usage


@dataclass(frozen=True, slots=True)
class Billed:
    """One request in money."""

    bill: Bill = field(repr=False)

    @property
    def dollars(self) -> float | None:
        """None: its price is not known, or not all that it took."""
        return self.bill.cost

    @property
    def as_json(self) -> dict[str, Any]:
        price = self.bill.price
        return {
            "usd": self.bill.cost,
            "usd_without_cache": self.bill.cost_without_cache,
            "usd_saved_by_optimising": self.bill.saved,
            "estimated_prices": list(price.estimated) if price is not None else [],
        }

    @property
    def words(self) -> str:
        return "cost unknown" if self.dollars is None else f"${self.dollars:.4f}"


class Billing:
    """Of one provider. ``ledger`` is closed with it; None: nothing is written down."""

    def __init__(self, provider: Provider, ledger: Ledger | None = None) -> None:
        self._provider = provider
        self._ledger = ledger

    def __repr__(self) -> str:
        return f"Billing({self._provider.name}, {self._ledger})"

    def bill(
        self,
        passage: Passage,
        model: str,
        usage: Usage,
        session: str,
        sentence: str,
        *,
        unoptimised: Usage | None = None,
    ) -> Billed:
        """Of one request that was answered, and note it. ``unoptimised``: what it would have taken as the client wrote
        it, where that is known."""
        price = price_of(self._provider, model, num_input_tokens=usage.num_input_tokens or 0)
        bill = bill_of(usage, price, unoptimised=unoptimised)
        if self._ledger is not None:
            entry = entry_of(
                bill,
                time=passage.call.began_at,
                session=session,
                provider=self._provider.name,
                model=model,
                source="gateway",
                seconds=passage.seconds,
                first_token_seconds=passage.first_byte_seconds,
                verdict=sentence,
            )
            self._ledger.note(entry)
        return Billed(bill)

    def close(self) -> None:
        """Write what waits."""
        if self._ledger is not None:
            self._ledger.close()
