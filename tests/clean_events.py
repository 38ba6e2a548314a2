"""Audit events as services write them, without any personal data: what scrubbing must leave as it is. Seeded."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.text import Sentences

Event = dict[str, Any]

CODE = (
    "def halves(items: list[int]) -> list[int]:\n    return items[1::2] or items[::2]\n",
    "x = torch.softmax(q @ k.transpose(-2, -1) / d**0.5, dim=-1)\n@dataclass(frozen=True)\nclass Point: ...",
    "SELECT id, SUM(amount) FROM orders WHERE created_at > '2026-11-01 00:00:00+00' GROUP BY id LIMIT 100 OFFSET 200;",
    "#include <vector>\nstd::vector<int> v{1, 2, 3}; auto it = std::find(v.begin(), v.end(), 0xDEADBEEF);",
    "use std::f64::consts::PI; // 3.14159265358979\nlet m = HashMap::<u64, Vec<u8>>::with_capacity(1_000_000);",
    "kubectl -n prod rollout undo deploy/api --to-revision=12 && docker run --rm -p 8080:80 nginx:1.27.3-alpine",
    "git clone git@github.com:acme/flywheel.git && git checkout 9fceb02d0ae598e95dc970b74767f19372d61af8",
    "npm install @types/node@20.11.5 react@^18.3.1 --save-exact; pip install 'torch>=2.6,<3' numpy==2.1.3",
    ".card::before { content: '\\201C'; color: #ff8800; background: rgba(255, 136, 0, 0.5); width: calc(100% - 12px) }",
    "const re = /^[A-Z]{2}\\d{2}[0-9A-Z]{11,30}$/; const token = await getToken(); if (!secret) throw new Error('x');",
    'File "/srv/app/worker.py", line 1287, in handle\n    raise KeyError(key)\nKeyError: 0x7f3a5c2b1e90',
    "*/15 2-6 1,15 * 1-5 /usr/bin/backup --keep 30 --max-size 104857600",
    "password = getpass.getpass()\napi_key = os.environ['API_KEY']\nauthorization = None",
)
SENTENCES = (
    "Please call me at 5 pm, the office is open 9-17 and the desk has 12 seats.",
    "The card was charged 49.99 EUR on 2026-11-20; card 3 of 5 is still blank.",
    "Processed 1048576 work items and 2097152 cell updates in 12.5 s, 83886080 bytes.",
    "See section 4.2.1.3 and clause 10.1.2.4 of the standard, RFC 9110, ISO 27001:2022 and CVE-2024-12345.",
    "ISBN 978-3-16-148410-0 and 0-306-40615-2, DOI 10.1145/3292500.3330701, UPC 036000291452.",
    "The phone 14 pro costs 1,299.00 USD (1.299,00 €), that is 12 % more than 1,159.82.",
    "On 24.11.2026 10:15 the mobile app had 1234567 sessions; fax is not used since 01/02/2024.",
    "Temperature 0.7, top_p 0.95, seed 9007199254740993, 18446744073709551615 states, 3.0e8 m/s.",
    "I forgot my password: what now? The secret: be patient. A token is about four letters.",
    "Contact us within 14 days, text at most 2000 characters, dial-up was 56 kbit/s.",
    "Resolution 1920x1080 at 59.94 Hz, ratio 16:9, 12:20:39:123 into the film, 52.5200, 13.4050.",
    "Account arn:aws:iam::123456789012:role/reader in eu-central-1, case 2026-114-0093, INC0012345.",
    "The @example handle, node root@localhost, MAC 00:1b:44:11:3a:b7, and the hash tag #2026.",
    "Version 2.14.0.1 replaces v10.20.30.40; driver 550.54.15 and firmware: 1.2.3.4 stay.",
    "| layer | 512 | 768 | 3072 |\n| heads | 8 | 12 | 48 |\n| loss | 2.1834 | 1.9027 | 1.7716 |",
    "Opening hours: Mon-Fri 08:00-18:30, Sat 10-14. Room 3.217, floor 2, seats 120-145.",
)
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/124.0.0.0 Safari/537.36 Edg/124.0.0.0",
    "OpenAI/Python 1.54.3 httpx/0.28.1",
    "opentelemetry-collector-contrib/0.155.0",
    "kube-probe/1.31",
)
MODELS = ("gpt-4o-2024-11-20", "claude-3-5-sonnet-20241022", "SmolLM2-135M-Instruct", "llama-3.1-8b", "mistral-7b-v0.3")
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def clean_events(count: int, seed: int = 20260101) -> Iterator[Event]:
    """So many events of every form."""
    maker = _Maker(random.Random(seed))
    for _ in range(count):
        yield maker.event()


class _Maker:
    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self._sentences = Sentences(draw, 3_000)
        self._forms: list[Callable[[], Event]] = [self._call, self._genai, self._evaluation, self._request, self._tool]

    def event(self) -> Event:
        draw = self.draw
        event: Event = {
            "event_id": str(uuid.UUID(int=draw.getrandbits(128), version=4)),
            "trace_id": f"{draw.getrandbits(128):032x}",
            "span_id": f"{draw.getrandbits(64):016x}",
            "timestamp": self._time(),
            "constitutional_hash": "cdd01ef066bc6cf2",
            **draw.choice(self._forms)(),
        }
        while draw.random() < 0.5:
            name, value = draw.choice(self._extras())
            event[name] = value
        return event

    # --- forms ---

    def _call(self) -> Event:
        draw = self.draw
        prompt, response = self._prose(), self._prose()
        return {
            "event_type": "model_call",
            "model_id": f"assistant-{draw.randrange(99)}",
            "model_version": ".".join(str(draw.randrange(30)) for _ in range(draw.choice((2, 3, 4)))),
            "prompt": prompt,
            "response": response,
            "compliance_score": draw.random(),
            "latency_ms": draw.expovariate(1 / 400),
            "prompt_tokens": draw.randrange(9_000),
            "total_cost": f"{draw.random():.6f}",
            "violations": draw.choice(([], ["harmful_content"], [{"type": "secret_leak", "severity": "high"}])),
        }

    def _genai(self) -> Event:
        draw = self.draw
        call = f"call_{self._name(24)}"
        arguments = {"order": draw.randrange(10**9), "since": self._time(), "limit": 50, "ids": [draw.getrandbits(63)]}
        messages = [
            {"role": "user", "parts": [{"type": "text", "content": self._prose()}]},
            {"role": "assistant", "parts": [{"type": "tool_call", "id": call, "name": "find", "arguments": arguments}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": call, "response": self._payload()}]},
        ]
        return {
            "event.name": "gen_ai.client.inference.operation.details",
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": draw.choice(("openai", "anthropic", "aws.bedrock")),
            "gen_ai.request.model": draw.choice(MODELS),
            "gen_ai.response.model": draw.choice(MODELS),
            "gen_ai.response.id": draw.choice((f"chatcmpl-{self._name(29)}", f"msg_01{self._name(22)}")),
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": draw.randrange(90_000),
            "gen_ai.usage.output_tokens": draw.randrange(9_000),
            "gen_ai.request.seed": draw.getrandbits(53),
            "gen_ai.conversation.id": f"conv_{draw.getrandbits(96):024x}",
            "gen_ai.input.messages": messages if draw.random() < 0.5 else json.dumps(messages),
            "server.address": "api.example.com",
            "server.port": 443,
        }

    def _evaluation(self) -> Event:
        draw = self.draw
        score = draw.random()
        return {
            "event_type": "policy_evaluation",
            "decision_id": uuid.UUID(int=draw.getrandbits(128)).hex,
            "allow": score > 0.95,
            "compliance_score": score,
            "reason": f"{self._sentences.text(1)} Score {score:.6f} < {0.95:.2f}.",
            "policy_version": f"v{draw.randrange(9)}.{draw.randrange(40)}.{draw.randrange(90)}",
            "scores": {name: round(draw.gauss(0, 1), 9) for name in ("harm", "privacy", "bias")},
            "workload_id": f"ns/{draw.getrandbits(40):010x}-{self._name(5).lower()}",
        }

    def _request(self) -> Event:
        draw = self.draw
        cursor = base64.urlsafe_b64encode(draw.randbytes(24)).decode()
        query = f"limit=50&page={draw.randrange(999)}&cursor={cursor}"
        path = f"/v{draw.randrange(1, 4)}/orders/{draw.getrandbits(40)}?{query}"
        return {
            "event_type": "http_request",
            "http.request.method": draw.choice(("GET", "POST")),
            "url.full": f"https://api.example.com:{draw.choice((443, 8443, 8080))}{path}",
            "http.response.status_code": draw.choice((200, 204, 404, 429, 500)),
            "user_agent.original": draw.choice(AGENTS),
            "etag": f'W/"{draw.getrandbits(160):040x}"',
            "http.response.body.size": draw.randrange(10**7),
            "date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(1_760_000_000 + draw.randrange(10**7))),
            "next_page_token": cursor,
        }

    def _tool(self) -> Event:
        draw = self.draw
        return {
            "event_type": "tool_call",
            "tool": {"name": "python", "call_id": f"call_{self._name(24)}", "token_count": str(draw.randrange(9_000))},
            "input": draw.choice(CODE),
            "output": self._payload(),
            "exit_code": draw.choice((0, 0, 1, 137)),
            "image": f"registry.example.com/tools/python@sha256:{draw.getrandbits(256):064x}",
            "commit": f"{draw.getrandbits(160):040x}",
            "steps": [{"at": self._time(), "ms": draw.random() * 900, "code": draw.choice(CODE)} for _ in range(2)],
        }

    # --- parts ---

    def _extras(self) -> list[tuple[str, Any]]:
        draw = self.draw
        nanoseconds = 1_700_000_000_000_000_000 + draw.getrandbits(57)
        return [
            ("time_unix_nano", str(nanoseconds)),
            ("observed_time_unix_nano", nanoseconds),
            ("epoch_us", str(nanoseconds // 1_000)),
            ("epoch_ms", str(nanoseconds // 1_000_000)),
            ("started", f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"),
            ("sequence", draw.getrandbits(draw.choice((31, 53, 63)))),
            ("card_like", draw.randrange(10**15, 10**16)),
            ("dd.trace_id", str(draw.getrandbits(63) | 1 << 62)),
            ("snowflake", str(draw.getrandbits(60) | 1 << 60)),
            ("digest", f"sha256:{hashlib.sha256(draw.randbytes(8)).hexdigest()}"),
            ("md5", hashlib.md5(draw.randbytes(8), usedforsecurity=False).hexdigest().upper()),
            ("crc", f"{draw.getrandbits(32):08x}"),
            ("amount", f"{draw.randrange(10**9):,}.{draw.randrange(100):02d} EUR"),
            ("price", draw.random()),
            ("span", f"{draw.randrange(1, 99)}:{draw.randrange(1, 99)}"),
            ("traceparent", f"00-{draw.getrandbits(128):032x}-{draw.getrandbits(64):016x}-01"),
            ("tracestate", f"ot=rv:{draw.getrandbits(56):014x},vendor=t61rcWkgMzE"),
            ("ulid", "".join(draw.choice("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for _ in range(26))),
            ("embedding", [round(draw.gauss(0, 1), 8) for _ in range(6)]),
            ("payload", self._payload()),
            ("host.name", f"ip-{draw.randrange(256)}-{draw.randrange(256)}-node-{self._name(5).lower()}"),
            ("k8s.pod.name", f"api-{draw.getrandbits(40):010x}-{self._name(5).lower()}"),
            ("process.pid", draw.randrange(99_999)),
            ("phone_verified", True),
            ("cards", draw.randrange(5)),
            ("tokens", {"prompt": draw.randrange(999), "max_tokens": 512, "eos_token": "</s>", "token": 17}),
            ("nothing", None),
            ("ratio", float(f"{draw.random():.16f}")),
        ]

    def _payload(self) -> str:
        draw = self.draw
        inner = {"n": draw.getrandbits(63), "big": draw.getrandbits(80), "at": self._time(), "v": draw.random()}
        text = json.dumps({**inner, "note": draw.choice(SENTENCES), "code": draw.choice(CODE)})
        return json.dumps({"result": text, "status": "ok"}) if draw.random() < 0.3 else text

    def _prose(self) -> str:
        draw = self.draw
        parts = [self._sentences.text(draw.randint(1, 3))]
        while draw.random() < 0.5:
            parts.append(
                draw.choice((draw.choice(SENTENCES), f"```\n{draw.choice(CODE)}\n```", self._sentences.text(1)))
            )
        draw.shuffle(parts)
        return draw.choice((" ", "\n", "\n\n")).join(parts)

    def _time(self) -> str:
        draw = self.draw
        day = f"{draw.randint(2020, 2030)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
        clock = f"{draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}"
        fraction = draw.choice(
            ("", f".{draw.randrange(10**3):03d}", f".{draw.randrange(10**6):06d}", f".{draw.randrange(10**9):09d}")
        )
        return f"{day}{draw.choice('T ')}{clock}{fraction}{draw.choice(('Z', '+00:00', '-05:30', ''))}"

    def _name(self, length: int) -> str:
        return "".join(self.draw.choices(_BASE62, k=length))
