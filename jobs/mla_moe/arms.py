"""The trainings of the claim: each a whole config that differs from the method in what is compared.

The method is the size that the claim is measured at, `laptop`: latent attention, fine-grained
experts behind a sigmoid gate, balanced by a bias, routed to 2 of 4 groups. Every other arm says in
one line what is different. Where attention changes, the width of the dense layers is set anew so
that the parameters stay the same to 3 %; experts are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from heliostat.config.int_range import IntRange
from heliostat.train.config import ZeroConfig
from jobs.mla_moe.config import BalanceConfig, Config
from jobs.mla_moe.model_config import AttentionConfig, MixtureConfig, decoder_config
from models.counting import parameter_count

METHOD = "latent, bias"
NO_BALANCE = "no balancing"
LOSS = "balanced by a loss"
BIAS_AND_LOSS = "bias and a small loss"
CONVENTIONAL = "conventional experts"
ANY_GROUPS = "any groups"
DROPPING = "balanced by a loss, dropping"
SHARDED = "sharding"
WITHOUT_CHOICE = "sharding without a choice"
MHA, GQA, MQA = "multi-head", "grouped-query", "multi-query"


@dataclass(frozen=True)
class Arm:
    """One training of one seed."""

    name: str
    config: Config

    @property
    def stage(self) -> str:
        """Begins the names of its stages."""
        slug = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        return f"s{self.config.seed}-{'-'.join(part for part in slug.split('-') if part)}"


def base_config(config: Config, seed: int) -> Config:
    """The method with a seed, on one worker."""
    return replace(
        config,
        seed=seed,
        fit=replace(config.fit, seed=seed),
        resources=replace(config.resources, workers=IntRange(1, 1), expert_parallel=None),
    )


def arms(config: Config, seed: int) -> list[Arm]:
    """Every arm of a seed but those of the curve."""
    base = base_config(config, seed)
    model, experts = base.model, base.model.experts
    settings = config.claim
    softmax = replace(experts, gate="softmax", normalised=False)
    by_loss = BalanceConfig(gamma=0.0, alpha_expert=settings.alpha_expert)
    no_balance = BalanceConfig(gamma=0.0)
    conventional = replace(
        softmax,
        routed=4,
        per_token=1,
        shared=0,
        width=(experts.routed + experts.shared) * experts.width // 4,
        groups=1,
        groups_per_token=1,
    )
    capped = replace(softmax, capacity_factor=1.0)
    return [
        Arm(METHOD, base),
        Arm(
            NO_BALANCE,
            replace(base, model=replace(model, experts=softmax), balance=no_balance),
        ),
        Arm(LOSS, replace(base, model=replace(model, experts=softmax), balance=by_loss)),
        Arm(
            BIAS_AND_LOSS,
            replace(base, balance=replace(base.balance, alpha_expert=settings.small_alpha_expert)),
        ),
        Arm(
            CONVENTIONAL,
            replace(
                base,
                model=replace(model, experts=conventional),
                balance=by_loss,
                export="none",
            ),
        ),
        Arm(
            ANY_GROUPS,
            replace(
                base,
                model=replace(model, experts=replace(experts, groups_per_token=experts.groups)),
            ),
        ),
        Arm(DROPPING, replace(base, model=replace(model, experts=capped), balance=by_loss)),
        *(
            Arm(name, with_attention(base, heads))
            for name, heads in plain_attentions(model.attention).items()
        ),
    ]


def plain_attentions(latent: AttentionConfig) -> dict[str, AttentionConfig]:
    """Multi-head, grouped-query with half the heads, and multi-query attention."""
    shared = {MHA: latent.heads, GQA: max(1, latent.heads // 2), MQA: 1}
    return {
        name: replace(latent, kind="heads", key_value_heads=heads) for name, heads in shared.items()
    }


def curve(config: Config, seed: int) -> list[Arm]:
    """Loss against cache: every pair of d_c and d_R but the method's own."""
    base = base_config(config, seed)
    own = base.model.attention
    return [
        Arm(
            curve_name(latent, rotary),
            with_attention(base, replace(own, latent_width=latent, rotary_width=rotary)),
        )
        for latent in config.claim.latent_widths
        for rotary in config.claim.rotary_widths
        if (latent, rotary) != (own.latent_width, own.rotary_width)
    ]


def curve_name(latent: int, rotary: int) -> str:
    """The name of a point of the curve."""
    return f"latent {latent}, rotary {rotary}"


def with_attention(config: Config, attention: AttentionConfig) -> Config:
    """The config with another attention and as many parameters, by the dense layers' width."""
    wanted = parameter_count(decoder_config(config.model))
    model = replace(config.model, attention=attention)
    off = wanted - parameter_count(decoder_config(model))
    per_unit = 3 * model.width * max(1, model.experts.dense_layers)
    width = max(1, model.feed_forward_width + round(off / per_unit))
    export = config.export if attention.kind == "latent" else "none"
    return replace(config, model=replace(model, feed_forward_width=width), export=export)


def shardings(config: Config, seed: int, *, without_choice: bool = False) -> list[Arm]:
    """One process, two, and two that share the experts, each with ZeRO 0, 1 and 2.

    Two trainings that differ in the last digit part for good when a token lies so close between two
    experts that the digit decides. `without_choice` every token meets every expert, and what is
    left is the arithmetic.
    """
    base = base_config(config, seed)
    if without_choice:
        base = replace(base, model=replace(base.model, experts=_all_met(base.model.experts)))
    steps = config.claim.shard_steps
    fit = replace(
        base.fit,
        steps=steps,
        precision="fp32",
        evaluation=replace(base.fit.evaluation, every=steps),
        checkpoint=replace(base.fit.checkpoint, every=steps),
    )
    found = []
    for stage in (0, 1, 2):
        zero = ZeroConfig(stage=stage)
        for workers, shared in ((1, None), (2, None), (2, 2)):
            name = sharding_name(workers, shared, stage, without_choice=without_choice)
            cut = replace(fit, zero=zero, micro_batch=fit.batch // workers, batch_ramp=None)
            resources = replace(
                base.resources, workers=IntRange(workers, workers), expert_parallel=shared
            )
            changed = replace(base, fit=cut, resources=resources)
            found.append(Arm(name, changed))
    return found


def sharding_name(
    workers: int, shared: int | None, stage: int, *, without_choice: bool = False
) -> str:
    """The name of a sharded training."""
    kind = WITHOUT_CHOICE if without_choice else SHARDED
    experts = f", experts on {shared}" if shared is not None else ""
    return f"{kind}, {workers} workers{experts}, ZeRO {stage}"


def _all_met(experts: MixtureConfig) -> MixtureConfig:
    """As many routed experts as a token meets, rounded up to two equal groups of two or more."""
    routed = max(4, experts.per_token + experts.per_token % 2)
    return replace(experts, routed=routed, per_token=routed, groups=2, groups_per_token=2)
