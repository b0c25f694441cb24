"""Command that computes GPU-days, money, memory and disk of a training before you pay for it.

python -m trainer.plan --stage all --gpu h100 --num_gpus 64
python -m trainer.plan --fit_config configs/finetune_pixart_512_24gb.yaml --gpu rtx4090 --num_gpus 1 --num_images 10000
python -m trainer.plan --project --gpu h100 --num_gpus 8 --num_images 2000000
python -m trainer.plan --stage aesthetic --gpu a100 --num_gpus 8 --price 1.2 --utilisation 0.35 --json
"""

import json

from foundry.command_line import run_command
from trainer.planning.config import PlanConfig


def main(config: PlanConfig) -> int:
    """Prints the plan and returns 0."""
    from trainer.planning.estimate import as_json, plan
    from trainer.planning.tables.training import plan_table

    rungs = plan(config)
    print(json.dumps(as_json(rungs, config)) if config.json else plan_table(rungs, config))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PlanConfig,
            main,
            prog="python -m trainer.plan",
            example="python -m trainer.plan --stage all --gpu h100 --num_gpus 64",
        )
    )
