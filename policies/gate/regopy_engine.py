"""The policies decided in this process by regopy (rego-cpp): no server, a decision takes one to two milliseconds."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

# Before regopy, whose library carries a copy of RE2: loaded after it, the first `re2.compile` ends the process.
import re2  # noqa: F401
from regopy import Bundle, Interpreter, RegoError

from models.decision import GateDecision
from policies.gate.answers import prepare_input, read_answer
from policies.gate.bundle import BundleError, PolicyBundle
from policies.gate.facts import encode
from policies.gate.interface import POLICY_UNAVAILABLE, undecided

DECISION = "data.acgs.nemo.constitutional.decision"
"""The document that every engine asks for."""

_COMMENT_OR_TEXT = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|`[^`]*`')
_CALL = re.compile(r"(?<![\w.])([a-z_]\w*(?:\.[a-z_]\w*)*)\(")
_FUNCTION = re.compile(r"^(?:default\s+)?([a-z_]\w*)\(", re.MULTILINE)


class RegopyEngine:
    """A `PolicyEngine` over a bundle compiled once.

    Decides on the calling thread, for decisions are few and short. One at a time (the interpreter holds its input),
    behind a lock, so tasks and threads may share the engine.
    """

    def __init__(self, bundle: PolicyBundle) -> None:
        """Compile the bundle.

        Raises:
            BundleError: the policies do not compile, call a builtin that regopy has not, or decide nothing.
        """
        self._lock = threading.Lock()
        self._interpreter, self._compiled = _compile(bundle)
        self._bundle = bundle

    @property
    def name(self) -> str:
        return "regopy"

    @property
    def bundle(self) -> PolicyBundle:
        """The bundle in force."""
        return self._bundle

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """See `PolicyEngine.decide`."""
        return self.decide_now(action, facts)

    def decide_now(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """`decide` for callers without an event loop."""
        text, unreadable = prepare_input(action, facts)
        try:
            with self._lock:
                answer = _query(self._interpreter, self._compiled, text)
        except (RegoError, ValueError) as error:
            message = f"The policy could not be evaluated ({type(error).__name__}); see the bundle's tests."
            return undecided(action, self.name, POLICY_UNAVAILABLE, message)
        return read_answer(action, self.name, answer, unreadable=unreadable)

    def swap(self, bundle: PolicyBundle) -> None:
        """Put another bundle in force between two decisions; the old one stays where the new does not compile.

        Raises:
            BundleError: as on construction.
        """
        interpreter, compiled = _compile(bundle)
        with self._lock:
            self._interpreter, self._compiled, self._bundle = interpreter, compiled, bundle

    async def aclose(self) -> None:
        """Nothing to let go of."""


def _compile(bundle: PolicyBundle) -> tuple[Interpreter, Bundle]:
    interpreter = Interpreter()
    interpreter.strict_built_in_errors = True
    _refuse_missing_builtins(interpreter, bundle.modules)
    try:
        interpreter.add_data_json(encode(bundle.document))
        # Data it cannot read goes without complaint until a build brings the process down.
        if not interpreter.query("1").ok():
            raise BundleError("regopy cannot read the policy data; run `opa check` over the data files")
        for name, source in bundle.modules.items():
            interpreter.add_module(name, source)
        compiled = interpreter.build(DECISION)
        answer = _query(interpreter, compiled, "{}") if compiled.ok() else None
    except BundleError:
        raise
    except (RegoError, ValueError) as error:
        raise BundleError(f"the policies do not compile: {_first_message(error)}; run `opa check --strict`") from error
    probe = read_answer("", "regopy", answer)
    if probe.allow or probe.bundle_revision != bundle.bundle_revision:
        raise BundleError(f"{DECISION} does not refuse an empty input by the revision in force; run the bundle's tests")
    return interpreter, compiled


def _query(interpreter: Interpreter, compiled: Bundle, text: str) -> Any:
    """The `decision` document for an input document; None where it is undefined.

    Raises:
        RegoError, ValueError: the evaluation failed.
    """
    interpreter.set_input_term(text)
    output = interpreter.query_bundle(compiled)
    if not output.ok():
        raise RegoError("the query failed")
    expressions = output.results[0].expressions if output.results else []
    return expressions[0] if expressions else None


def _refuse_missing_builtins(interpreter: Interpreter, modules: Mapping[str, str]) -> None:
    """rego-cpp compiles a call of a function it does not know, and the rule is then silently undefined."""
    sources = {name: _COMMENT_OR_TEXT.sub('""', source) for name, source in modules.items()}
    own = {name for source in sources.values() for name in _FUNCTION.findall(source)}
    for module, source in sources.items():
        for called in _CALL.findall(source):
            if called not in own and not interpreter.is_builtin(called):
                raise BundleError(f"{module} calls {called}, which regopy has not; write it with builtins it has")


def _first_message(error: Exception) -> str:
    match = re.search(r"\(errormsg \d+:([^\n]*)\)", str(error))
    return match.group(1) if match else type(error).__name__
