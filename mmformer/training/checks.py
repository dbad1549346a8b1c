"""What the parts of a run must agree on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmformer.errors import InputError, nearest
from mmformer.spec import Parts
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.schedule import ConstantScheduleSpec
from mmformer.types import MODALITIES

if TYPE_CHECKING:
    from mmformer.training.run import RunSpec


def check_run(run: RunSpec) -> None:
    """Refuse a run whose parts do not fit together.

    Raises:
        InputError: what does not fit what, and the fix.
    """
    _check_names(run)
    _check_parts(run)
    run.parallel.check(run.model, run.data.batch_size, run.trainer.accumulate_grad_batches, run.data.order.lanes)
    _check_modalities(run)
    _check_mixing(run)
    _check_evaluation(run)
    _check_adapters(run)
    _check_thaw(run)
    _check_reversible(run)
    _check_pipeline(run)
    if run.optimizer.averages:
        _check_averages(run)
    if run.logging.samples and "image" not in run.data.filled:
        raise InputError("logging.samples draws pictures, but data.image is absent: set it to 0.")


def _check_names(run: RunSpec) -> None:
    if not run.objectives:
        raise InputError("objectives is empty: name one, such as contrastive: {class_path: ContrastiveSpec}.")
    for group, names in (
        ("objectives", run.objectives),
        ("evaluation.metrics", run.evaluation.metrics),
        ("adapters", run.adapters),
        ("data.labels", run.data.all_labels),
        ("data.also", run.data.also),
    ):
        for name in names:
            if not name.isidentifier() or name == "aux":
                raise InputError(
                    f"{group} has the name {name!r}; letters, digits and _ alone make a name, and aux is taken."
                )


def _check_parts(run: RunSpec) -> None:
    """Refuse objectives and metrics that read what is not there."""
    model = run.model
    patches = {name: each.patches.patch for name, each in model.encoders.items() if each.patches is not None}
    parts = Parts(model.embedding_widths, model.heads, model.decoders, tuple(run.data.all_labels), patches)
    for objective in run.objectives.values():
        objective.check(parts)
    measured = parts._replace(labels=tuple(run.data.labels))  # the first source's held-out splits
    for metric in run.evaluation.metrics.values():
        metric.check(measured)


def _check_mixing(run: RunSpec) -> None:
    """Refuse mixed pictures where a loss knows nothing of mixtures."""
    blind = [name for name, objective in run.objectives.items() if not objective.mixes]
    for where, source in run.data.named.items():
        if source.image is not None and source.image.mix is not None and blind:
            raise InputError(
                f"{where}.image.mix mixes pictures and their labels, but objectives.{blind[0]} would take a mixture "
                f"for the picture that it is named after: leave mix out, or train on labels alone."
            )


def _check_modalities(run: RunSpec) -> None:
    model, data = run.model, run.data
    tokenizers = [encoder.tokenizer for encoder in model.encoders.values()]
    read = {tokenizer.modality for tokenizer in tokenizers}
    if model.decoders:
        read.add("target" if "target" in data.filled else "text")
    for field_name in (*MODALITIES, "target"):
        given = field_name in data.filled
        if field_name in read and not given:
            raise InputError(f"The model reads {field_name}, but data.{field_name} is absent: say how it is read.")
        if given and field_name not in read:
            raise InputError(f"data.{field_name} is read, but no encoder or decoder of the model uses it: remove it.")
    for name, decoder in model.decoders.items():
        texts = [tokenizer for tokenizer in tokenizers if isinstance(tokenizer, TextTokensSpec)]
        # What stands before a text is not written.
        other = next((t for t in texts if dataclasses.replace(t, begin=False) != decoder.tokenizer), None)
        if "target" not in data.filled and other is not None:
            raise InputError(
                f"model.decoders.{name} writes the text that encoders read, but cuts it into other ids: "
                f"{decoder.tokenizer} and {other}. Give both the same tokenizer, or set data.target."
            )
    for name, encoder in model.encoders.items():
        rate, audio = getattr(encoder.tokenizer, "rate", None), data.shared("audio")
        if audio is not None and rate not in (None, audio.transform.rate):
            raise InputError(
                f"model.encoders.{name} reads {rate} samples a second, but data.audio.transform.rate is "
                f"{audio.transform.rate}: give both the same."
            )
    image = data.shared("image")
    if image is not None and image.transform.fit == "native":
        _check_native(run, image.transform.patch, image.transform.budget)


def _check_native(run: RunSpec, patch: int, budget: int) -> None:
    """Refuse a model that cannot read patches of pictures in their own proportions, up to a budget of them."""
    model = run.model
    reading = {name: part for name, part in model.encoders.items() if part.tokenizer.modality == "image"}
    for name, encoder in reading.items():
        tokenizer = encoder.tokenizer
        if not isinstance(tokenizer, ImagePatchesSpec) or tokenizer.patch != patch:
            raise InputError(
                f"data.image.transform makes patches of {patch}x{patch} pixels of pictures in their own "
                f"proportions (fit: native), but model.encoders.{name} reads pictures by {tokenizer}: give it "
                f"ImagePatchesSpec with the patch {patch}, or take another fit."
            )
    stacks = {encoder.stack for encoder in reading.values()}
    stacks |= {decoder.stack for decoder in model.decoders.values() if {*decoder.read_as("prefix")} & {*reading}}
    for name in sorted(stacks):
        limits = model.stacks[name].position.limits
        if min(limits.get(1, budget), limits.get(2, budget)) < budget:
            raise InputError(
                f"model.stacks.{name}.position has {tuple(limits.values())} places on the axes {tuple(limits)}, but "
                f"a picture in its own proportions (fit: native) may have {budget} rows or columns of patches: take "
                f"SinusoidalPositionSpec or RotaryPositionSpec over the axes (1, 2)."
            )


def _check_evaluation(run: RunSpec) -> None:
    if run.checkpoint.best is None:
        for name, plain in (("mode", "max"), ("keep_best", 1)):
            if getattr(run.checkpoint, name) != plain:
                raise InputError(f"checkpoint.{name} is of what checkpoint.best names, but that names no score.")
    if run.evaluation.every_steps is not None:
        if run.data.validation is None:
            raise InputError("evaluation.every_steps is set, but data.validation names no split to evaluate on.")
        if not run.evaluation.metrics:
            raise InputError("evaluation.every_steps is set, but evaluation.metrics names nothing to measure.")
    writing = [name for name, metric in run.evaluation.metrics.items() if metric.generates]
    if writing and run.evaluation.every_steps is not None and run.parallel.processes > 1:
        raise InputError(
            f"evaluation.metrics.{writing[0]} has a decoder write, which a model that is spread over processes "
            f"({run.parallel.arithmetic}) does not do while it is trained: set evaluation.every_steps to null (the end "
            f"is measured), or train in one."
        )
    metrics = run.evaluation.metrics
    for field_name, score in run.watched_scores.items():
        if run.evaluation.every_steps is None:
            raise InputError(f"{field_name} needs scores while training: set evaluation.every_steps.")
        if score.partition("/")[0] not in metrics:
            raise InputError(
                f"{field_name} is '{score}', but evaluation.metrics names {', '.join(metrics)}."
                f"{nearest(score.partition('/')[0], metrics)}"
            )


def _check_adapters(run: RunSpec) -> None:
    if run.adapters and run.initial is None:
        raise InputError(
            "adapters change weights that were learned before, but initial is absent, and they would be drawn: set "
            "initial.path to a bundle."
        )
    if run.adapters and run.parallel.tensor > 1:
        raise InputError(
            f"adapters change linear maps, which parallel.tensor, {run.parallel.tensor}, would share out: set it to 1, "
            f"and parallel.shard in its place."
        )


def _check_thaw(run: RunSpec) -> None:
    for pattern, updates in run.thaw.items():
        if not 1 <= updates < run.trainer.max_steps:
            raise InputError(
                f"thaw is {updates} for '{pattern}', but must be at least 1 and below trainer.max_steps "
                f"({run.trainer.max_steps}); to keep parameters as they are, freeze them."
            )


def _check_reversible(run: RunSpec) -> None:
    reversible = [name for name, stack in run.model.stacks.items() if stack.reversible]
    if reversible and run.parallel.processes > 1:
        raise InputError(
            f"model.stacks.{reversible[0]} is reversible, whose layers are computed half by half, but several "
            f"processes ({run.parallel.arithmetic}) gather a layer's weights for the whole of it: set these to 1, or "
            f"reversible to false and parallel.activation_checkpointing."
        )
    if reversible == list(run.model.stacks) and run.parallel.compile:
        raise InputError(
            "parallel.compile makes a program of each layer, but all stacks are reversible, which run their layers by "
            "halves: set it to false."
        )
    if reversible == list(run.model.stacks) and run.parallel.activation_checkpointing is not None:
        raise InputError(
            "parallel.activation_checkpointing has layers computed again, but all stacks are reversible, which does "
            "that already: leave it out."
        )


def _check_pipeline(run: RunSpec) -> None:
    unmoved = [name for name in ("adapters", "freeze", "thaw") if getattr(run, name)]
    if unmoved and run.parallel.pipeline > 1:
        raise InputError(
            f"{unmoved[0]} takes parameters out of training, and might leave a stage of parallel.pipeline, "
            f"{run.parallel.pipeline}, with nothing to train: set it to 1, and parallel.shard in its place."
        )


def _check_averages(run: RunSpec) -> None:
    name = type(run.optimizer).__name__
    if run.ema is not None:
        raise InputError(f"optimizer {name} averages the weights itself: set ema to null.")
    if not isinstance(run.schedule, ConstantScheduleSpec) or run.schedule.cooldown_steps:
        raise InputError(
            f"optimizer {name} is made for a rate that does not fall: set schedule to a ConstantScheduleSpec "
            f"without cooldown_steps (a warm-up is good), but it is {run.schedule}."
        )
