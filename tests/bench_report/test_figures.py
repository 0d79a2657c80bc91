"""``make figures``: the README's pictures and table are those of the results that are kept beside them."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tests.bench_report.made_up_results import KVSTET, full_results

import figures
from kvstet.bench.results import Results

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def differences(ours: str, theirs: str) -> list[str]:
    """Words that differ, and numbers that differ by more than half a unit: matplotlibs differ in the last digits."""
    pairs = zip_longest(re.split(r"(?<![\w#-])(-?\d+\.\d+)", ours), re.split(r"(?<![\w#-])(-?\d+\.\d+)", theirs))
    return [f"{mine!r} is not {other!r}" for mine, other in pairs if not _is_same(mine, other)]


def _is_same(mine: str | None, other: str | None) -> bool:
    if mine is None or other is None or not NUMBER.fullmatch(mine) or not NUMBER.fullmatch(other):
        return mine == other
    return abs(float(mine) - float(other)) <= 0.5


def test_what_is_kept_is_up_to_date() -> None:
    """make figures was run after the last change to the results, or to what draws them."""
    readme = figures.README.read_text()
    kept = {path.name for path in figures.FOLDER.glob("*.svg")} if figures.FOLDER.exists() else set[str]()
    if not figures.RESULTS.exists():
        assert not kept and figures.BEGIN not in readme, "pictures and table come from results that are kept, too"
        return
    results = msgspec.json.decode(figures.RESULTS.read_bytes(), type=Results)
    drawn = figures.figures(results)
    assert kept == set(drawn)
    for name, svg in drawn.items():
        assert differences((figures.FOLDER / name).read_text(), svg) == []
    assert figures.with_table(readme, figures.table(results)) == readme


def test_every_picture_is_there_for_light_and_for_dark() -> None:
    drawn = figures.figures(full_results(num_pairs=2))
    assert set(drawn) == {
        f"{name}-{end}.svg" for name in ("computed", "first-token", "drift") for end in ("light", "dark")
    }
    for name in ("computed", "first-token", "drift"):
        assert drawn[f"{name}-light.svg"] != drawn[f"{name}-dark.svg"]
    assert not any("var(--" in svg for svg in drawn.values()), "variables are the report's"


def test_pictures_are_the_same_each_time_and_others_for_other_results() -> None:
    first, again, other = (figures.figures(full_results(seed, num_pairs=2)) for seed in (7, 7, 8))
    assert first == again
    assert all(differences(first[name], other[name]) for name in first if not name.startswith("drift"))


def test_the_table_has_medians_and_the_range_of_the_ratio() -> None:
    results = full_results()
    head, _, append, *rest = figures.table(results).splitlines()
    assert head.startswith(f"| | prompt tokens | lower bound | {KVSTET} computed |")
    computed = sorted(run.num_computed_tokens or 0 for run in results.scenarios[0].runs if run.server == KVSTET)
    assert append.split(" | ")[3] == f"{computed[2]:,}"
    assert re.search(r"\| \d\.\d\d \S \(\d\.\d\d to \d\.\d\d\) \|$", append)
    assert len(rest) == 14


def test_a_row_of_few_pairs_is_left_out() -> None:
    results = full_results()
    first = results.scenarios[0]
    few = replace(first, runs=[run for run in first.runs if run.repetition < figures.MIN_PAIRS - 1])
    shown = figures.table(replace(results, scenarios=[few, *results.scenarios[1:]]))
    assert first.title in figures.table(results) and first.title not in shown
    assert len(shown.splitlines()) == len(figures.table(results).splitlines()) - 1


def test_state_that_has_become_exact_stays_in_the_picture() -> None:
    """Nothing is no place on a logarithmic scale; a line that left the picture took all the room with it."""
    results = full_results()
    last = replace(results.drift[-1], mean_divergence=0.0)
    drawn = figures.figures(replace(results, drift=[*results.drift[:-1], last]))["drift-light.svg"]
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', drawn)[0])
    heights = [float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", drawn)]
    assert heights and all(-10 <= y <= height + 10 for y in heights)
    assert "0.0e+00 nats" in drawn


def test_the_table_is_put_between_its_marks_and_nothing_else_is_touched() -> None:
    text = f"before\n\n{figures.BEGIN}\n| old |\n{figures.END}\n\nbehind\n"
    assert figures.with_table(text, "| new |") == text.replace("old", "new")


def test_the_command_writes_pictures_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, readme = tmp_path / "docs" / "figures", tmp_path / "README.md"
    folder.mkdir(parents=True)
    readme.write_text(f"{figures.BEGIN}\n{figures.END}\n")
    for name, value in {
        "ROOT": tmp_path,
        "FOLDER": folder,
        "README": readme,
        "RESULTS": folder / "results.json",
    }.items():
        monkeypatch.setattr(figures, name, value)
    assert figures.main() == 1, "there are no results"
    (folder / "results.json").write_bytes(msgspec.json.encode(full_results()))
    assert figures.main() == 0
    assert len(list(folder.glob("*.svg"))) == 6
    assert "| Append |" in readme.read_text()
    test_what_is_kept_is_up_to_date()
    (folder / "results.json").write_bytes(msgspec.json.encode(full_results(8)))
    with pytest.raises(AssertionError):
        test_what_is_kept_is_up_to_date()
