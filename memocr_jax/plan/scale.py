"""How a run scales: predicted steps for several numbers of devices, by the formulas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from memocr_jax.config import Config, validate
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.plan.chips import Chip, Topology, slice_of
from memocr_jax.plan.plan import Assumptions, Plan, make_plan, with_settings


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A run on one number of devices."""

    topology: Topology
    questions: int
    plan: Plan | None
    problem: str = ""
    """Why it cannot be run at all."""

    def as_dict(self) -> dict[str, Any]:
        plan = None if self.plan is None else self.plan.as_dict()
        problem = self.problem or None
        return {"topology": str(self.topology), "questions": self.questions, "problem": problem, "plan": plan}


def scale(
    config: Config,
    model: Qwen25VLConfig,
    chip: Chip,
    counts: Sequence[int],
    assumptions: Assumptions,
    stand_ins: Callable[[Topology], tuple[Sequence[Any], Sequence[Any]]],
) -> list[Scaled]:
    """The configuration's run on each of `counts` devices: with its own questions a step, and, where a host
    would have less than one, with one for each host.

    `mesh.tensor` stays; `mesh.fsdp` and the rows of a micro-batch grow with the devices of a slice, and
    `mesh.data` are the slices. One update a step where a mini-batch does not divide over the processes.
    """
    found = []
    for count in counts:
        topology = slice_of(chip, count)
        rows = count // config.mesh.tensor
        own = config.rl.questions_per_step
        for questions in sorted({own, max(own, topology.processes)}):
            minibatch = config.rl.minibatch_questions
            settings = {
                "mesh.data": topology.slices,
                "mesh.fsdp": rows // topology.slices,
                "train.micro_batch_rows": rows,
                "train.logp_chunk_tokens": 1024 * rows,
                "rl.questions_per_step": questions,
                "rl.minibatch_questions": questions if minibatch % topology.processes else minibatch,
            }
            changed = with_settings(config, settings)
            try:
                validate(changed)
                plan = make_plan(
                    changed, model, topology, assumptions, stand_ins(topology), compiled=lambda _: False
                )
                found.append(Scaled(topology, questions, plan))
            except UserError as error:
                found.append(Scaled(topology, questions, None, str(error)))
    return found
