"""What a plan's model costs: parameters, activations, operations, steps.

Each function adds a note for what it could not find out, so that an estimate never hides a gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliostat.cluster.fit_estimate import Work
from heliostat.cluster.fit_plan import ExampleBatch, FitPlan, MetaModel
from heliostat.cluster.flops import training_flops
from heliostat.errors import HeliostatError
from heliostat.train.batch_schedule import samples_in, total_steps

if TYPE_CHECKING:
    from torch import nn

    from heliostat.cluster.dry_pass import DryPass, ParameterCount
    from heliostat.train.task import Batch

# What a dry pass on the CPU may cost where `meta` does not work: some seconds.
_MOST_CPU_FLOPS = 2e11


def meta_model(plan: FitPlan, notes: list[str]) -> nn.Module:
    """The model without values; with them when it cannot be built otherwise."""
    import torch

    if isinstance(plan.task, MetaModel):
        return plan.task.meta_model()
    try:
        with torch.device("meta"):
            return plan.task.model()
    except (RuntimeError, NotImplementedError) as error:
        notes.append(
            f"the model was built in memory, since it cannot be built on meta ({_one_line(error)})"
        )
        return plan.task.model()


def measure(plan: FitPlan, model: nn.Module, notes: list[str]) -> DryPass | None:
    """The costs of one micro batch, on meta, else on the CPU for a small model."""
    from heliostat.cluster.dry_pass import count_parameters, dry_pass

    batch = _batch(plan, notes)
    if batch is None:
        return None
    reason = "the model cannot be built on meta"
    if next(model.parameters()).device.type == "meta":
        try:
            return dry_pass(plan.task, model, batch, plan.fit.precision)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            reason = f"the loss cannot run on meta tensors ({_one_line(error)})"
    elements = max((value.shape[:2].numel() for value in batch.values()), default=1)
    if 6.0 * count_parameters(model).total * elements > _MOST_CPU_FLOPS:
        notes.append(f"activations are unknown: {reason}, and it is too large to try on this CPU")
        return None
    notes.append(f"measured on this CPU: {reason}")
    return dry_pass(plan.task, plan.task.model(), batch, plan.fit.precision)


def steps_of(plan: FitPlan, notes: list[str]) -> int | None:
    if plan.fit.steps is not None:
        return plan.fit.steps
    if plan.samples_per_epoch is None:
        notes.append("steps are unknown until the data are prepared: epochs was given, not steps")
        return None
    return total_steps(plan.fit, plan.samples_per_epoch)


def activation_bytes(plan: FitPlan, measured: DryPass | None, notes: list[str]) -> float | None:
    if measured is None:
        return None
    if not plan.fit.activation_checkpointing:
        return measured.activation_bytes
    if measured.checkpointed_bytes is None:
        notes.append("activation_checkpointing is true, but the model has no switch for it")
        return measured.activation_bytes
    return measured.checkpointed_bytes


def work_of(
    plan: FitPlan,
    parameters: ParameterCount,
    measured: DryPass | None,
    steps: int | None,
    notes: list[str],
) -> Work | None:
    if measured is not None:
        per_step = measured.flops * plan.fit.batch / plan.fit.micro_batch
        source = "counted by torch on one micro batch, whole attention matrices, nothing twice"
    elif plan.tokens_per_sample is not None:
        tokens = plan.fit.batch * plan.tokens_per_sample
        per_step = training_flops(parameters.total - parameters.embedding, tokens, None)
        source = "6 x parameters outside look-up tables x tokens; attention matrices left out"
    else:
        notes.append("operations are unknown: neither a batch nor tokens per sample")
        return None
    if steps is None:
        return None
    whole_batches = samples_in(plan.fit, steps) / plan.fit.batch
    return Work(per_step, per_step * whole_batches, source)


def _batch(plan: FitPlan, notes: list[str]) -> Batch | None:
    size = plan.fit.micro_batch
    if isinstance(plan.task, ExampleBatch):
        return plan.task.example_batch(size)
    try:
        return plan.task.collate(plan.task.train_data().samples(range(size)))
    except (HeliostatError, OSError) as error:
        notes.append(f"no batch to measure, since the data are not prepared ({_one_line(error)})")
        return None


def _one_line(error: Exception) -> str:
    """The first line of an error's text; torch's go on for a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
