"""Whether a bundle decides its own cases as they say. One that does not is not loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from policies.gate.bundle import PolicyBundle, bundle_of
from policies.gate.cases import Case, CaseTable, cases_of
from policies.gate.errors import BundleError
from policies.gate.regopy_engine import RegopyEngine

_NAMED = 3
_THREADS = 2
_WORTH_DIVIDING = 100


def check_files(files: Mapping[str, bytes], root: Path, overrides: Mapping[str, Any] | None = None) -> PolicyBundle:
    """The bundle that `read_files(root)` found, tested, with an installation's overrides in its data.

    The cases are decided over the bundle's own data: an installation may set other bounds than they are written for.

    Raises:
        BundleError: it does not load, has no cases or fails one, or an override does not fit.
    """
    bundle = bundle_of(files, root)
    check_bundle(bundle, cases_of(files, root))
    if not overrides:
        return bundle
    overridden = bundle.with_data(overrides)
    RegopyEngine(overridden)  # refuses what does not decide
    return overridden


def check_bundle(bundle: PolicyBundle, table: CaseTable) -> None:
    """Have the bundle decide every case, by regopy.

    Raises:
        BundleError: it does not compile, or decides a case otherwise; names the first of those.
    """
    failed = [f"{case.name!r}: {difference}" for case, difference in failures(bundle, table)]
    if failed:
        named = "; ".join(failed[:_NAMED]) + ("; ..." if len(failed) > _NAMED else "")
        message = f"the policies decide {len(failed)} of {len(table.cases)} cases otherwise than their table says"
        raise BundleError(f"{message} ({named}); mend the policies or the table")


def failures(bundle: PolicyBundle, table: CaseTable) -> list[tuple[Case, str]]:
    """The cases that the bundle decides otherwise, and what differs; raises `BundleError` if it does not compile."""
    # regopy lets other threads run while it decides.
    with ThreadPoolExecutor(_THREADS, "policy-cases") as pool:
        found = dict(pair for differences in pool.map(_decide, _shares(bundle, table)) for pair in differences)
    return [(case, found[case.name]) for case in table.cases if case.name in found]


def _shares(bundle: PolicyBundle, table: CaseTable) -> Iterator[tuple[PolicyBundle, list[Case]]]:
    """The cases over each of the table's data; where they are many, one share a thread."""
    for name, over_data in table.bundles(bundle).items():
        cases = [case for case in table.cases if case.data == name]
        parts = _THREADS if len(cases) > _WORTH_DIVIDING else 1
        yield from ((over_data, share) for share in (cases[part::parts] for part in range(parts)) if share)


def _decide(share: tuple[PolicyBundle, list[Case]]) -> list[tuple[str, str]]:
    bundle, cases = share
    engine = RegopyEngine(bundle)
    decided = ((case.name, case.mismatch(engine.decide_now(case.action, case.facts))) for case in cases)
    return [(name, difference) for name, difference in decided if difference is not None]
