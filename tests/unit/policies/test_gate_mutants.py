"""No part of the policies can be taken out or turned round without a case that notices."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gate_parts import BUNDLES, TABLE, opa_program
from policy_mutants import INTRODUCES, Mutant, expressions, mutants, noticed_by, rules_of

from policies.gate.bundle import REGO_ROOT

MODULES = BUNDLES["usual"].modules
MUTANTS = list(mutants(MODULES))


@pytest.fixture(scope="module")
def noticed(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """The case that notices each mutant which is to be tested. regopy lets two threads take half the time."""
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    chosen = [mutant for mutant in MUTANTS if str(mutant) in wanted]
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(lambda mutant: (str(mutant), noticed_by(mutant, BUNDLES, TABLE.cases)), chosen))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_case_notices(mutant: Mutant, noticed: dict[str, str | None]) -> None:
    assert noticed[str(mutant)] is not None, f"no case needs it: {mutant}\n{mutant.source}"


def test_the_policies_themselves_pass() -> None:
    """So that a mutant which is noticed is noticed for what was changed."""
    name, source = next(iter(MODULES.items()))
    assert noticed_by(Mutant(name, rules_of(source)[0], "unchanged", source), BUNDLES, TABLE.cases) is None


def test_every_rule_is_changed() -> None:
    changed = {(mutant.module, mutant.title) for mutant in MUTANTS}
    for module, source in MODULES.items():
        titles = [rule.splitlines()[1].removeprefix("# title: ") for rule in rules_of(source)]
        assert {(module, title) for title in titles} <= changed
        assert len(titles) == len(set(titles)), f"{module}: two rules have one title"


def test_every_expression_is_changed() -> None:
    """As many as OPA's parser finds, but for those that introduce a name."""
    opa = opa_program()
    for module, source in MODULES.items():
        parsed = subprocess.run([opa, "parse", "--format", "json", REGO_ROOT / module], capture_output=True, check=True)
        rules = json.loads(parsed.stdout)["rules"]
        for text, rule in zip(rules_of(source), rules, strict=True):
            named = [line for line in text.splitlines() if line[0:1] == "\t" and INTRODUCES.match(line.strip())]
            bodiless = re.search(r"(?m)^(?!#).* if ", text) is None
            assert count(rule["body"]) - bodiless == len(list(expressions(text))) + len(named), text


def count(body: list[dict[str, Any]]) -> int:
    """The expressions of a body, those within `every` too."""
    terms = [expression["terms"] for expression in body]
    return len(terms) + sum(count(term["body"]) for term in terms if isinstance(term, dict) and "body" in term)


def test_what_becomes_of_a_rule() -> None:
    (watch,) = (rule for source in MODULES.values() for rule in rules_of(source) if "The watch measured" in rule)
    assert sorted(mutant.change for mutant in MUTANTS if mutant.rule == watch) == [
        '!= in input.rollback.trigger == "watch"',
        "turned bound in at_least(input.rollback.n_evaluations, data.bounds.watch_min_evaluations)",
        "turned bound in share_below(input.rollback.adherence, data.bounds.watch_adherence)",
        "without at_least(input.rollback.n_evaluations, data.bounds.watch_min_evaluations)",
        'without input.rollback.trigger == "watch"',
        "without share_below(input.rollback.adherence, data.bounds.watch_adherence)",
        "without the rule",
    ]
