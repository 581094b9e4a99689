"""Mutation testing: small faults are planted in the package, one at a time, and each should make a test fail.

    nice python tests/campaigns/mutate.py --count 300 --seed 0 --only attacks gradients --list-survivors

Needs the package `coverage` and a system that can fork. A mutant costs its tests alone: torch, the package and the
tests are imported once, and every mutant is a fork of that process in which the code of one function is exchanged. Its
tests are those that run the line (found once per test file, and kept outside of the repository until the file changes),
the quick ones first, up to the first that fails or to `--budget` seconds of them; a mutant that hangs is killed.

Printed are killed, survived and timed-out mutants by room, and with `--list-survivors` every survivor as the line
before and after. Survivors that no test can tell from the original stand in `mutants.md`, with the reason, and count
apart. `--one TEXT` plants only mutants whose description holds the text, `--again OUTPUT` those that survived there.
Messages, annotations, default arguments, asserts and constants of modules are not mutated.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest has it, where this is run as a script
from campaigns.faults import Key, Mutant, fits, functions_in, in_a_fork, mutants_of, mutated, package, places_of, plant

TESTS = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("mutants.md")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparring-mutate"

# Where the tests of each room are looked for; which of them run a mutant's line decides.
ROOMS: dict[str, tuple[str, ...]] = {
    "attacks": ("attacks", "evaluation", "test_evaluation.py", "test_defaults.py"),
    "gradients": ("gradients", "ensembles", "test_losses.py", "test_defaults.py"),
    "tracing": ("gradients", "test_defaults.py"),
    "ensembles": ("ensembles", "gradients", "analysis/test_ensembles.py", "test_defaults.py"),
    "evaluation": ("evaluation", "test_evaluation.py", "attacks/test_starts.py"),
    "lipschitz": ("lipschitz",),
    "runs.py": ("test_runs.py", "training"),
}


@dataclass
class Known:
    """Of each test its seconds and the lines that it runs, as "file function+offset"; from the cache or measured."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[str]] = field(default_factory=dict)


class Campaign:
    """A plugin of pytest, whose loop over the tests becomes the loop over the mutants."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        self.failed: str | None = None

    def pytest_configure(self) -> None:
        from hypothesis import Phase
        from hypothesis import settings as hypothesis

        phases = [Phase.explicit, Phase.generate]  # one failure is enough: nothing is shrunk
        hypothesis.register_profile("mutate", hypothesis.default, database=None, phases=phases)
        hypothesis.load_profile("mutate")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: Any) -> bool:
        rooms = self.settings.only
        paths = sorted(path for room in rooms for path in _files(package() / room))
        for path in paths:
            parts = path.relative_to(package().parent).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
        self.functions = functions_in(paths)
        gc.freeze()  # so that forks share the memory of what they leave alone
        self.items = {item.nodeid: item for item in session.items}
        known = self._know(session)
        chosen = self._chosen(paths)
        equivalent = _equivalent()
        outcomes: dict[str, Counter[str]] = {room: Counter() for room in rooms}
        survivors: list[str] = []
        begun = time.monotonic()
        for number, (mutant, codes) in enumerate(chosen, 1):
            outcome, by = self._try(mutant, codes, known)
            if outcome == "survived" and mutant.description in equivalent:
                outcome = "equivalent"
            outcomes[mutant.room][outcome] += 1
            if outcome == "survived":
                survivors.append(f"{mutant.path.relative_to(package())}:{mutant.line} {mutant.function} ({by})\n"
                                 f"  - {mutant.old}\n  + {mutant.new}\n  `{mutant.description}`")  # fmt: skip
            if self.settings.verbose or outcome == "survived":
                print(f"{number}/{len(chosen)} {outcome} ({by}) {mutant.line} {mutant.description}", flush=True)
        print(f"\n{len(chosen)} mutants in {time.monotonic() - begun:.0f} s, seed {self.settings.seed}")
        _tell(outcomes)
        if self.settings.list_survivors and survivors:
            print("\nsurvivors:", *survivors, sep="\n")
        return True

    def _try(self, mutant: Mutant, codes: dict[Key, CodeType], known: Known) -> tuple[str, str]:
        """killed, survived or timeout, and by what test or why not."""
        tests = [test for test, lines in known.lines.items() if not lines.isdisjoint(mutant.places)]
        if not tests:  # where the function was changed since then
            function = mutant.places[0].rsplit("+", 1)[0] + "+"
            tests = [test for test, lines in known.lines.items() if any(line.startswith(function) for line in lines)]
        tests.sort(key=lambda test: (len(f"{int(known.seconds[test] * 50):b}"), test))
        spent, selected = 0.0, list[str]()
        for test in tests:
            spent += known.seconds[test]
            if selected and spent > self.settings.budget:
                break
            selected.append(test)
        if not selected:
            return "survived", "no test runs the line"

        def work() -> str | None:
            plant(codes, self.functions[mutant.path])
            return self._run(selected)

        limit = 20 + 10 * sum(known.seconds[test] for test in selected)  # others may use the processor too
        failed = in_a_fork(lambda: [work()], limit)
        if failed is None:
            return "timeout", f"{limit:.0f} s"
        if isinstance(failed, str):
            return "killed", failed
        return ("killed", failed[0]) if failed[0] else ("survived", f"{len(selected)} of {len(tests)} tests")

    def _run(self, tests: Sequence[str]) -> str | None:
        """Run tests up to the first that fails, and name it."""
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed is not None:
                return self.failed
        return None

    def _know(self, session: Any) -> Known:
        """Seconds and lines of all tests, measured where they are not in the cache."""
        by_file: dict[Path, list[str]] = {}
        for test, item in self.items.items():
            by_file.setdefault(item.path, []).append(test)
        known = Known()
        CACHE.mkdir(parents=True, exist_ok=True)
        for path, tests in by_file.items():
            name = str(path.relative_to(TESTS))
            text = "\n".join((name, path.read_text(encoding="utf-8"), sys.version))
            cached = CACHE / f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
            if not cached.exists() or self.settings.fresh:
                begun = time.monotonic()
                found = in_a_fork(lambda tests=tests: self._measure(tests), 3600)
                if not isinstance(found, dict):
                    print(f"{path}: could not be measured ({found})", flush=True)
                    continue
                cached.write_text(json.dumps(found), encoding="utf-8")
                print(f"measured {name}: {len(found)} tests, {time.monotonic() - begun:.0f} s", flush=True)
            for test, (seconds, lines) in json.loads(cached.read_text(encoding="utf-8")).items():
                if test in self.items:
                    known.seconds[test], known.lines[test] = seconds, set(lines)
        return known

    def _measure(self, tests: Sequence[str]) -> dict[str, tuple[float, list[str]]]:
        """Of each test that passes: seconds, and lines as "file function+offset"."""
        import coverage

        measure = coverage.Coverage(data_file=None, source=[str(package())], config_file=False)
        seconds: dict[str, float] = {}
        items = [self.items[test] for test in tests]
        measure.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            measure.switch_context(item.nodeid)
            self.failed, begun = None, time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed is None:
                seconds[item.nodeid] = time.process_time() - begun
        measure.stop()
        data = measure.get_data()
        lines: dict[str, list[str]] = {test: [] for test in seconds}
        for file in data.measured_files():
            places = places_of(Path(file))
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    if context in lines and line in places:
                        lines[context].append(places[line])
        return {test: (seconds[test], lines[test]) for test in seconds}

    def _chosen(self, paths: Sequence[Path]) -> list[tuple[Mutant, dict[Key, CodeType]]]:
        """A sample of the mutants that can be planted."""
        everything = [mutant for path in paths for mutant in mutants_of(path)]
        if self.settings.again:
            survivors = {*re.findall(r"^  `(.+)`$", Path(self.settings.again).read_text(encoding="utf-8"), re.M)}
            everything = [mutant for mutant in everything if mutant.description in survivors]
        if self.settings.one:
            everything = [mutant for mutant in everything if self.settings.one in mutant.description]
        seen: Counter[str] = Counter()
        order = {}
        for mutant in everything:  # by hashes, so that changes elsewhere hardly change a sample
            seen[mutant.description] += 1
            text = f"{self.settings.seed} {mutant.description} {seen[mutant.description]}"
            order[mutant] = hashlib.sha256(text.encode()).digest()
        everything.sort(key=order.__getitem__)
        chosen: list[tuple[Mutant, dict[Key, CodeType]]] = []
        for mutant in everything:
            if len(chosen) == self.settings.count:
                break
            codes = mutated(mutant)
            if fits(codes, self.functions[mutant.path]):
                chosen.append((mutant, codes))
        print(f"{len(everything)} mutants, {len(chosen)} of them chosen", flush=True)
        return chosen


def _files(room: Path) -> Iterator[Path]:
    yield from room.rglob("*.py") if room.is_dir() else [room]


def _equivalent() -> set[str]:
    return {*re.findall(r"^- `(.+?)`", EQUIVALENT.read_text(encoding="utf-8"), re.M)} if EQUIVALENT.exists() else set()


def _tell(outcomes: dict[str, Counter[str]]) -> None:
    columns = ("killed", "timeout", "survived", "equivalent")
    print(f"{'room':12}", *(f"{column:>10}" for column in columns), f"{'noticed':>10}")
    total: Counter[str] = sum(outcomes.values(), Counter())
    for room, counts in [*outcomes.items(), ("all", total)]:
        noticed = counts["killed"] + counts["timeout"]
        of = noticed + counts["survived"]
        share = f"{100 * noticed / of:.1f} %" if of else ""
        print(f"{room:12}", *(f"{counts[column]:>10}" for column in columns), f"{share:>10}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=ROOMS, default=[*ROOMS], help="parts of the package")
    parser.add_argument("--budget", type=float, default=30, help="seconds of tests for a mutant (default: %(default)s)")
    parser.add_argument("--one", default="", help="only mutants whose description holds this text")
    parser.add_argument("--again", default="", help="a former output, with its survivors: only these")
    parser.add_argument("--fresh", action="store_true", help="measure again which test runs what")
    parser.add_argument("--list-survivors", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="a line for every mutant")
    settings = parser.parse_args()

    import pytest

    tests = dict.fromkeys(test for room in settings.only for test in ROOMS[room] if (TESTS / test).exists())
    with tempfile.TemporaryDirectory() as folder:
        return int(pytest.main(
            [
                *(str(TESTS / test) for test in tests), "-s", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                "-p", "no:benchmark", "-m", "not (simt or cuda or browser or shared)", f"--basetemp={folder}/tests",
                f"--rootdir={TESTS.parent}",
            ],
            plugins=[Campaign(settings)],
        ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
