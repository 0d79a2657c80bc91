"""What the meter says, and what it does not know."""

from __future__ import annotations

from kvstet.agent.meter import Meter, step_line, total_line
from kvstet.money.bill import Bill, bill_of
from kvstet.providers.prices import FREE, Price
from kvstet.types import Usage

PRICE = Price(input=1e-5, cache_read=1e-6, cache_write=1e-5, long_cache_write=None, output=5e-5, source="test")
TOLD = Usage(num_input_tokens=12_000, num_cache_read_tokens=9_000, num_cache_write_tokens=1_000, num_output_tokens=100)
SILENT = Usage(num_input_tokens=1_000, num_output_tokens=10)


def metered(*usages: Usage, price: Price | None = PRICE) -> Meter:
    def bill(usage: Usage) -> Bill:
        return bill_of(usage, price)

    meter = Meter(bill)
    for number, usage in enumerate(usages, 1):
        meter.count(number, usage, 1.5, None, is_summary=False)
    return meter


def test_a_step_says_where_its_tokens_came_from_and_what_they_cost() -> None:
    (step,) = metered(TOLD).steps
    assert step_line(step) == (
        "step 1: prompt 12,000, cached 9,000 (75.0%), written 1,000, output 100,"
        " $0.0440 (without a cache $0.1250), 1.5 s"
    )


def test_what_is_not_told_is_no_zero() -> None:
    (step,) = metered(SILENT).steps
    assert step_line(step) == "step 1: prompt 1,000, cached ?, written ?, output 10, cost unknown, 1.5 s"
    assert step_line(metered(Usage()).steps[0]).startswith("step 1: prompt ?, cached ?, written ?, output ?")


def test_a_model_without_a_price_says_so() -> None:
    assert "price unknown" in step_line(metered(TOLD, price=None).steps[0])
    assert "price unknown" in total_line(metered(TOLD, TOLD, price=None).steps)
    assert ", $0, " in step_line(metered(TOLD, price=FREE).steps[0])


def test_sums_count_what_they_leave_out() -> None:
    line = total_line(metered(TOLD, SILENT, TOLD).steps)
    assert line.startswith("total of 3 requests: prompt 25,000, cached 18,000+? (75.0%), written 2,000+?, output 210, ")
    assert "$0.0880 and 1 unknown, 4.5 s" in line


def test_nothing_is_nothing() -> None:
    assert total_line([]) == "total of 0 requests: prompt 0, cached 0, written 0, output 0, $0, 0.0 s"
