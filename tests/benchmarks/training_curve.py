"""What privacy costs in quality: `curve` in `var/bench/training.json`, and a plot.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.training_curve

For epsilon 1, 2, 4, 8 and none, five seeds each: the short demonstration's training set (authored prompts only) trained
by the product's trainer, with the noise that its accountant solves, and judged on held-out prompts of other topics by
both evaluators. A seed fixes the adapter's initial weights, batches, dropout and noise, and the streams of the answers.
Each point is appended to a file as soon as it is there, so the benchmark can be stopped and goes on where it was. A
point takes some minutes on two cores; shares do not depend on how busy the machine is. Two processes with a thread each
(`--part 1/2` and `--part 2/2`, started together with FLYWHEEL_TRAINING__THREADS=1) need less than one with two.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import torch

from agents.curation.manifest import keyed
from agents.training import planning
from agents.training.config import CycleConfig
from agents.training.jobs.setup import Student, load_student
from agents.training.jobs.training_set import as_example
from agents.training.judged import Judged, judged
from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.lora import LoraSpec, attach_adapter, unload_adapter
from agents.training.ml.plan import DpPlan
from app.settings import Settings
from benchmarks.curve_figures import INTERVAL, MEASURED, curve, draw
from benchmarks.curve_set import SIZE, CurveSet, curve_config, load_or_make
from benchmarks.document import read, write
from benchmarks.engine_judge import EngineJudge
from benchmarks.tell import tell
from benchmarks.training import RESULT
from models.cycle import TrainingPlan
from models.evaluation_api import Evaluation
from policies.engine.combine import Verdict

RESULTS = Path(__file__).with_name("results")
EPSILONS: tuple[float | None, ...] = (1.0, 2.0, 4.0, 8.0, None)
LARGEST = 8.0
"""The plan of a run without noise: a plan names a target, and this one's noise is taken away."""


def main(arguments: list[str] | None = None) -> int:
    """Add points, then put together what there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_curve", description=__doc__)
    parser.add_argument("--points", type=int, default=1000, help="how many to add now; 0 only puts them together")
    parser.add_argument("--part", type=_part, default=(1, 1), help="2/3: every third of the missing, from the second")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the set, the points and the plot")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    config = curve_config()
    data = load_or_make(asked.folder / "training_curve_set.json", RESULT.parent / "training_curve")
    tag = set_up(data, config)
    file = asked.folder / "training_curve.jsonl"
    number, of = asked.part
    missing = list(_missing(_points(file, tag), asked.seeds))[number - 1 :: of]
    if missing[: asked.points]:
        bench = Bench(data, config, tag)
        for seed, epsilon in missing[: asked.points]:
            point = bench.point(epsilon, seed)
            with file.open("ab") as lines:
                lines.write(orjson.dumps(point) + b"\n")
            tell(" ".join(f"{name}={_told(value)}" for name, value in point.items()))
    points = _points(file, tag)
    if points:
        _put_together(points, asked.folder / "training_curve.png", asked.out)
    tell(f"{len(points)} of {asked.seeds * len(EPSILONS)} points; written to {asked.out}")
    return 0


class Bench:
    """The base model, the judge and the data in memory; one point after the other."""

    def __init__(self, data: CurveSet, config: CycleConfig, tag: str) -> None:
        self._data, self._config, self._tag = data, config, tag
        self._student: Student = load_student(config.student)
        self._judge = EngineJudge()
        # The engine has threads of its own setting, for it is a process of its own elsewhere.
        torch.set_num_threads(config.student.threads)
        pairs = data.private + data.public
        self._examples = [as_example(config, self._student, prompt, target) for prompt, target in pairs]

    def point(self, epsilon: float | None, seed: int) -> dict[str, Any]:
        """Train and judge one model."""
        started, cpu = time.perf_counter(), time.process_time()
        plan = plan_of(self._data, self._config, epsilon)
        noise = 0.0 if epsilon is None else planning.cost_of(plan, []).noise_multiplier
        spec = LoraSpec(plan.lora_rank, plan.lora_alpha, plan.lora_dropout, plan.target_modules)
        model = attach_adapter(self._student.model, spec, seed=seed)
        trainer = PrivateTrainer(
            model,
            self._examples,
            DpPlan(
                sample_rate=plan.sample_rate,
                steps=plan.steps,
                noise_multiplier=noise,
                max_grad_norm=plan.max_grad_norm,
                delta=plan.delta,
                micro_batch=self._config.tuning.micro_batch,
                learning_rate=plan.learning_rate,
            ),
            pad_id=int(self._student.tokenizer.pad_token_id),
            seed=seed,
            authored_data=True,
        )
        while not trainer.finished:
            trainer.step()
        trainer.close()
        found = self._judged(model.eval(), seed)
        self._student.model = unload_adapter(model)
        del trainer, model
        gc.collect()
        harmful = [item for item in found if item.prompt.expected == "refuse"]
        harmless = [item for item in found if item.prompt.expected == "comply"]
        marks = {name: _marks(harmful if name.endswith("adherent") else harmless, name) for name in MEASURED}
        return {
            "set_up": self._tag,
            "epsilon": epsilon,
            "seed": seed,
            "noise_multiplier": round(noise, 3),
            "sample_rate": round(plan.sample_rate, 4),
            "steps": plan.steps,
            **marks,
            "degenerate": sum(item.degenerate for item in found),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }

    def _judged(self, model: Any, seed: int) -> list[Judged]:
        prompts = self._data.held_out
        key = f"curve-{seed}".encode()
        requests = [
            self._student.request(
                str(number), [{"role": "user", "content": asked.prompt}], keyed(key, "evaluate", asked.prompt)
            )
            for number, asked in enumerate(prompts)
        ]
        answers = self._student.generator(model).generate(requests, self._student.params(SIZE.new_tokens))
        verdicts = self._judge.verdicts([asked.prompt for asked in prompts], [answer.text for answer in answers])
        return [
            judged(asked, answer.text, _evaluation(verdict))
            for asked, answer, verdict in zip(prompts, answers, verdicts, strict=True)
        ]


def plan_of(data: CurveSet, config: CycleConfig, epsilon: float | None) -> TrainingPlan:
    """What the product would plan for such a set."""
    return planning.make_plan(config, len(data.private), len(data.public), LARGEST if epsilon is None else epsilon)


def set_up(data: CurveSet, config: CycleConfig) -> str:
    """Names data and settings together: points under another name are left alone."""
    plan = plan_of(data, config, None).model_dump(mode="json")
    student = config.student.model_dump(mode="json", exclude={"model_cache", "device", "threads"})
    told = [data.digest, plan, student, config.tuning.max_tokens, SIZE.new_tokens]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def _missing(points: list[dict[str, Any]], seeds: int) -> Iterator[tuple[int, float | None]]:
    """Seed by seed, so that what is there at any time compares all epsilons."""
    there = {(point["seed"], point["epsilon"]) for point in points}
    yield from ((seed, epsilon) for seed in range(seeds) for epsilon in EPSILONS if (seed, epsilon) not in there)


def _part(text: str) -> tuple[int, int]:
    number, of = map(int, text.split("/"))
    if not 1 <= number <= of:
        raise ValueError(f"{text} is no part: 1/2 and 2/2 are two processes that share the points")
    return number, of


def _points(file: Path, tag: str) -> list[dict[str, Any]]:
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [point for line in lines if line.strip() and (point := orjson.loads(line))["set_up"] == tag]


def _put_together(points: list[dict[str, Any]], plot: Path, out: Path) -> None:
    entries = curve(points)
    write(out, read(out) | {"curve": entries, "curve_interval": INTERVAL})
    draw(entries, points, plot)
    for entry in entries:
        tell(f"{entry}")


def _evaluation(verdict: Verdict) -> Evaluation:
    """A verdict as the service would send it."""
    return Evaluation(**asdict(verdict), policy_version="-", decision_id="-", constitution_digest="-")


def _marks(items: list[Judged], name: str) -> str:
    return "".join("1" if getattr(item, name) else "0" for item in items)


def _told(value: Any) -> Any:
    return f"{value.count('1')}/{len(value)}" if isinstance(value, str) and set(value) <= {"0", "1"} else value


if __name__ == "__main__":
    Settings()  # refuses unknown settings before minutes are spent
    sys.exit(main())
