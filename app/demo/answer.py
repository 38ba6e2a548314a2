"""The assistant of the demo, as a child process: the base model answers the prompts."""

from __future__ import annotations

from typing import Any

from agents.curation.manifest import keyed
from agents.training.child import JobChannel
from agents.training.config import StudentConfig
from agents.training.jobs.setup import load_student
from app.telemetry.logs import set_up_logging


def main(specification: dict[str, Any], channel: JobChannel) -> dict[str, Any]:
    """Answer `prompts` (a list of texts); the random stream of each is keyed by `seed` and the text."""
    set_up_logging("demo-assistant", "WARNING")
    student = load_student(StudentConfig.model_validate(specification["student"]))
    prompts: list[str] = specification["prompts"]
    key = f"demo-{specification['seed']}".encode()
    requests = [
        student.request(str(number), [{"role": "user", "content": text}], keyed(key, "answer", text))
        for number, text in enumerate(prompts)
    ]
    generator = student.generator()
    answers = generator.generate(
        requests,
        student.params(int(specification["max_new_tokens"])),
        lambda done, total: channel.progress(done=done, total=total),
    )
    return {
        "answers": [answer.text for answer in answers],
        "tokens": generator.stats.tokens,
        "tokens_per_s": round(generator.stats.tokens_per_second, 1),
    }


if __name__ == "__main__":
    JobChannel().run(main)
