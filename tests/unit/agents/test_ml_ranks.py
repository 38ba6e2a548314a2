"""Two processes by torchrun: one mechanism, whose result is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch
from dp_parts import EXAMPLES, clipped_sum, lora_model, reference_gradients
from rank_worker import CLIPPED, EMPTY, SEED, SEEDED, update
from safetensors.torch import load_file
from services import REPOSITORY

from agents.training.ml.ranks import Ranks, joined_ranks

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

SIZE = 2
Written = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written what came of every plan."""
    place = tmp_path_factory.mktemp("ranks")
    launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={SIZE}"]
    script = str(REPOSITORY / "tests" / "rank_worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    done = subprocess.run(
        [sys.executable, *launch, script, str(place)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return place


@pytest.fixture(scope="module")
def written(folder: Path) -> Written:
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(SIZE)]


def test_all_processes_end_with_the_same_weights(written: Written) -> None:
    first, second = written
    assert first.keys() == {"clipped", "noise", "empty", "seeded"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_of_two_processes_is_the_clipped_sum_over_the_expected_batch(written: Written) -> None:
    total = clipped_sum(reference_gradients(lora_model().eval(), EXAMPLES), CLIPPED.max_grad_norm)
    expected = -torch.cat([part.flatten() for part in total]) / len(EXAMPLES)
    assert float((written[0]["clipped"] - expected).abs().max()) < 1e-5


def test_noise_is_added_once_however_many_processes_there_are(written: Written) -> None:
    flat = written[0]["noise"].double().numpy() * len(EXAMPLES)
    assert flat.std() == pytest.approx(1.0, rel=5 / np.sqrt(2 * len(flat)) + 1e-4)
    # A step that drew nobody is a step of noise in both.
    empty = written[0]["empty"].double().numpy() * EMPTY.sample_rate * len(EXAMPLES)
    assert empty.std() == pytest.approx(1.3 * 0.7, rel=5 / np.sqrt(2 * len(empty)))


def test_the_same_seed_gives_what_one_process_gives(written: Written) -> None:
    alone = update(SEEDED, None, seed=SEED)
    assert float(alone.abs().max()) > 1e-3
    # Sums in another order: nothing but rounding, which Adam's first steps magnify where a gradient is near zero.
    assert float((written[0]["seeded"] - alone).norm() / alone.norm()) < 1e-3


def test_the_first_process_alone_reserves_and_each_works_on_its_share(folder: Path) -> None:
    seen = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(SIZE)]
    assert [one["asked"] for one in seen] == [[0], []]
    assert [one["share"] for one in seen] == [3, 2]
    assert {one["told"] for one in seen} == {"told by the first: ß"}
    assert {one["size"] for one in seen} == {SIZE}


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined_ranks() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.same_text("alone") == "alone"
        assert float(ranks.total(torch.ones(1))) == 1.0
