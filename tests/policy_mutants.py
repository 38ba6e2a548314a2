"""Policies with one thing wrong in them, to see whether the cases would notice.

Read from the text, which `opa fmt` keeps in one form: a rule begins with its metadata, an expression of its body with a
tab, one within `every` with two.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from policies.gate.bundle import PolicyBundle
from policies.gate.cases import USUAL, Case
from policies.gate.errors import BundleError
from policies.gate.regopy_engine import RegopyEngine

DOES_NOT_LOAD = "(it does not load)"

_TURNED = "turned bound"
_RELATION = re.compile(r"(?<= )(>=|<=|==|!=|>|<)(?= )")
_OTHER = {">=": ">", ">": ">=", "<=": "<", "<": "<=", "==": "!=", "!=": "=="}
_SET = re.compile(r'\{("[^"{}]+"(?:, "[^"{}]+")+)\}')
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"')
# What introduces a name is needed by whatever uses the name: without it nothing compiles.
INTRODUCES = re.compile(r"(?:\w+ := |some )")
_ONE_LINE = re.compile(r"(?m)^(?!#|default )(.* if )(?!\{$)(.+)$")

BEYOND_THE_BOUND = """
mutant_at_least(value, bound) if {
	at_least(value, bound)
	value != bound
}
mutant_at_most(value, bound) if {
	at_most(value, bound)
	value != bound
}
mutant_share_at_least(value, bound) if {
	share_at_least(value, bound)
	value != bound
}
mutant_share_below(value, bound) if share_below(value, bound)
mutant_share_below(value, bound) if value == bound
mutant_positive_at_most(value, bound) if {
	positive_at_most(value, bound)
	value != bound
}
mutant_amount_within(value, bound) if {
	amount_within(value, bound)
	value != bound
}
"""
"""The helpers that compare with a bound, with the bound itself on the other side."""

_BOUNDED = re.compile(r"(?m)^(?!at_|share_|positive_|amount_|#)(.*)\b(?=(?:" + "|".join(
    sorted(set(re.findall(r"(?m)^mutant_(\w+)\(", BEYOND_THE_BOUND)))
) + r")\()")  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module of the policies, changed in one place."""

    module: str
    rule: str
    change: str
    source: str

    def __str__(self) -> str:
        return f"{self.module.rpartition('/')[2]}: {self.title}: {self.change}"

    @property
    def title(self) -> str:
        """The title of the rule that is changed."""
        return self.rule.splitlines()[1].removeprefix("# title: ")


def mutants(modules: Mapping[str, str]) -> Iterator[Mutant]:
    """Every rule taken out, expression made true, relation or bound turned round, and member taken from a set."""
    for module, source in modules.items():
        for rule in rules_of(source):
            assert source.count(rule) == 1, f"{module} holds this twice:\n{rule}"
            before, after = source.split(rule)
            yield Mutant(module, rule, "without the rule", before + after)
            for change, text in _changed_rules(rule):
                yield Mutant(module, rule, change, before + text + after)


def rules_of(source: str) -> list[str]:
    """The rules of a module, each with its metadata; the package clause and the package's metadata are left out."""
    blocks = re.split(r"(?m)^(?=# METADATA$)", source)
    return [block for block in blocks if block.startswith("# METADATA") and not re.search(r"(?m)^package ", block)]


def noticed_by(mutant: Mutant, bundles: Mapping[str, PolicyBundle], cases: Iterable[Case]) -> str | None:
    """The first case that the mutant decides otherwise, the likeliest asked first; None where it passes them all."""
    order = list(cases)
    order.reverse()  # those at the table's end were written for a single rule
    order.sort(key=lambda case: _promise(case, mutant))
    engines: dict[str, RegopyEngine] = {}
    for case in order:
        if case.data not in engines:
            bundle = bundles[case.data]
            changed = dataclasses.replace(bundle, modules={**bundle.modules, mutant.module: mutant.source})
            try:
                engines[case.data] = RegopyEngine(changed)
            except BundleError:
                return DOES_NOT_LOAD
        if case.mismatch(engines[case.data].decide_now(case.action, case.facts)) is not None:
            return case.name
    return None


def _promise(case: Case, mutant: Mutant) -> int:
    """Rank of a case: the lower, the sooner it may notice the mutant. Other data than usual costs a compilation.

    A turned bound refuses too much: cases that are allowed notice. Else it is those of a code that the rule names, then
    those written for a single rule, and again those that are allowed.
    """
    named = any(code in mutant.rule for code in case.codes)
    if mutant.change.startswith(_TURNED):
        rank = 0 if not case.codes else 1 if named else 2
    else:
        rank = 0 if named else 1 if case.needs_approval is not None else 2 if not case.codes else 6
    return rank + (0 if case.data == USUAL else 3)


def _changed_rules(rule: str) -> Iterator[tuple[str, str]]:
    for start, end in expressions(rule):
        yield f"without {_short(rule[start:end])}", rule[:start] + "true" + rule[end:]
    for found in _RELATION.finditer(_without_texts(rule)):
        other = _OTHER[found[0]]
        yield f"{other} in {_line(rule, found.start())}", rule[: found.start()] + other + rule[found.end() :]
    for found in _BOUNDED.finditer(rule):
        turned = rule[: found.end()] + "mutant_" + rule[found.end() :]
        yield f"{_TURNED} in {_line(rule, found.start())}", turned + BEYOND_THE_BOUND
    for found in _SET.finditer(rule):
        members = found[1].split(", ")
        for member in members:
            rest = "{" + ", ".join(other for other in members if other != member) + "}"
            yield f"without {member}", rule[: found.start()] + rest + rule[found.end() :]


def expressions(rule: str) -> Iterator[tuple[int, int]]:
    """Where the expressions of a rule's body begin and end, those within `every` too."""
    for found in _ONE_LINE.finditer(rule):
        yield found.span(2)
    body = re.search(r"(?ms)^(?!#)[^\n]* if \{\n(.*?)^\}$", rule)
    if body is None:
        return
    yield from _indented(rule, body.start(1), body.end(1), "\t")
    for every in re.finditer(r"(?ms)^\tevery [^\n]* \{\n(.*?)^\t\}$", rule):
        yield from _indented(rule, every.start(1), every.end(1), "\t\t")


def _indented(rule: str, start: int, end: int, indent: str) -> Iterator[tuple[int, int]]:
    """The expressions at one depth: a line that begins there, with the deeper and the closing lines after it."""
    pattern = re.compile(rf"(?m)^{indent}(?![\t\]\}})])(.+(?:\n(?:{indent}\t.*|{indent}[\]\}})].*))*)$")
    for found in pattern.finditer(rule, start, end):
        if not INTRODUCES.match(found[1]):
            yield found.span(1)


def _without_texts(rule: str) -> str:
    """The rule with blanks for what stands in quotes and in comments, in the same places."""
    blank = _TEXT.sub(lambda found: " " * len(found[0]), rule)
    return re.sub(r"(?m)^#.*$", lambda found: " " * len(found[0]), blank)


def _line(rule: str, place: int) -> str:
    start = rule.rfind("\n", 0, place) + 1
    end = rule.find("\n", place)
    return rule[start:end].strip()


def _short(expression: str) -> str:
    first, _, rest = expression.partition("\n")
    return first + (" ..." if rest else "")
