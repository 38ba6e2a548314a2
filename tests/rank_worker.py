"""One of several processes that train together; `test_ml_ranks.py` starts them and compares what they write.

python -m torch.distributed.run --nproc-per-node=2 tests/rank_worker.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from dp_parts import EXAMPLES, PAD, lora_model, plain_plan, update_of
from safetensors.torch import save_file

from agents.training.ml.dp import PrivateTrainer
from agents.training.ml.plan import DpPlan
from agents.training.ml.ranks import Ranks, joined_ranks

SEED = 11
CLIPPED = plain_plan(max_grad_norm=0.5)
NOISE_ALONE = plain_plan(noise_multiplier=1e6, max_grad_norm=1e-6)
EMPTY = plain_plan(sample_rate=1e-9, noise_multiplier=1.3, max_grad_norm=0.7)
SEEDED = plain_plan(sample_rate=0.5, noise_multiplier=1.0, steps=3, learning_rate=1e-3, optimizer="adam")


def update(plan: DpPlan, ranks: Ranks | None, **options: Any) -> torch.Tensor:
    """What a run of the plan adds to the trained weights, as one vector."""
    trainer = PrivateTrainer(lora_model(), EXAMPLES, plan, pad_id=PAD, ranks=ranks, **options)
    return torch.cat([part.flatten() for part in update_of(trainer, plan.steps)])


def main(folder: Path) -> None:
    """Run each plan with the other processes; the updates and what was seen go to `rank-N.*`."""
    with joined_ranks() as ranks:
        asked: list[int] = []
        report = PrivateTrainer(lora_model(), EXAMPLES, CLIPPED, pad_id=PAD, ranks=ranks, authored_data=True).step()
        assert report.authored is not None
        told = ranks.same_text("told by the first: ß" if ranks.leads else None)
        updates = {
            "clipped": update(CLIPPED, ranks, before_step=asked.append),
            "noise": update(NOISE_ALONE, ranks),
            "empty": update(EMPTY, ranks),
            "seeded": update(SEEDED, ranks, seed=SEED),
        }
        seen = {"asked": asked, "told": told, "share": report.authored.batch, "size": ranks.size}
        save_file(updates, folder / f"rank-{ranks.rank}.safetensors")
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(Path(sys.argv[1]))
