"""A family of models elsewhere, and what they are with us: tables, read both ways, and no code of its own.

The template is a file under ``configs/models/``, at a published size. Its fields take a reference's config into it, its
rules the weights. A spec that comes out of such a template is that family's, however it was made: a model that was
trained here goes out by the same tables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from torch import Tensor

from mmformer import resources
from mmformer.config import parse, read_yaml, to_data
from mmformer.errors import InputError
from mmformer.interop import plain
from mmformer.interop.fields import Field, complete, put, read_config, require_known, write_config
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.text_end import TextEnd
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.cleaning import Cleaning

Library = Literal["hf", "open_clip", "timm"]


GENERATION = (
    *("bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length"),
    *("begin_suppress_tokens", "suppress_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "temperature", "top_k"),
    *("top_p", "typical_p", "return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss", "pruned_heads"),
)
"""Keys that transformers 4 wrote into every config: how texts are written by default, and what a run once did."""

COMMON: Mapping[Library, tuple[str, ...]] = {
    "hf": (
        *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "return_dict"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "mask_token_id"),
        *("id2label", "label2id", "num_labels", "problem_type", "tokenizer_class", "_name_or_path", "name_or_path"),
        *("initializer_range", "initializer_factor", "output_attentions", "output_hidden_states", "output_past"),
        *("gradient_checkpointing", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation*"),
        *("task_specific_params", "finetuning_task", "prefix", "_num_labels", "_commit_hash", "language"),
        *("is_encoder_decoder", "vision_config.tie_word_embeddings"),
        *GENERATION,
    ),
    "open_clip": (),
    "timm": (),
}
"""Keys of all configs of a library that change nothing of what a model computes, or are read apart (special ids,
classes)."""


SPECIAL = {"pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "start": "decoder_start_token_id"}
TEXT_SPECIAL = {name: f"text_config.{key}" for name, key in SPECIAL.items()}
"""Fields of SpecialIds, and the keys of transformers' configs that say them; where one is inside it for texts."""

INERT = {
    **{"add_cross_attention": False, "cross_attention_hidden_size": None, "is_decoder": False},
    **{"tie_encoder_decoder": False, "dropout": 0.0},
}
"""Keys that transformers 4 wrote into every config, those inside another too, and what each is where it changes
nothing."""

TRAINING = (
    *("dropout", "mixer_dropout", "embedding_dropout", "input_dropout", "output_dropout", "drop_path"),
    *("patch_dropout", "jitter"),
    *("smoothing", "initialisation", "packed", "chunk", "balance_loss", "z_loss"),
)
"""Fields of specs that say how a model is trained, and change nothing of what it computes: a model that was trained
with others goes out all the same."""


@dataclass(frozen=True)
class Layout:
    """One of the classes that a family's weights are kept by.

    Attributes:
        prefix: what names of the trunk begin with; rules have it as ``{base}``.
        without: dotted paths of the template that this class has not: ``heads.language``, say.
        words: what other words in braces stand for in the names of rules.
        mark: what a name begins with that only weights of this layout have, where a class was kept in several.
        unread: patterns of names that its weights may have besides, and that the class does not read (BERT's were
            trained with more heads than one).
    """

    prefix: str = ""
    without: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        library: whose.
        name: the family's, as its library calls it (``model_type`` of transformers).
        template: the file under configs/models/.
        layouts: by the name of the class (``architectures`` of transformers), and what stands after a space where it
            has several; the first is what goes out by default.
        fields: config ↔ spec.
        rules: parameters, for a config that is complete.
        seen: a config, with what it does not say and the weights show.
        defaults: what the library means where a config says nothing, or null; callables get the config.
        ignored: patterns of keys that change nothing of what is computed.
        text: the paths of the TextTokensSpecs whose vocabulary a folder's is.
        special: where a config says special ids: a field of SpecialIds -> its dotted key.
        unasked: whether its class writes as its folder says where nobody asks for another way. BLIP's has one inside it
            write, which sees nothing of that.
        text_end: the id at which its pool reads a text, where it looks for one.
        clean: what the library does to a text before its vocabulary sees it (open_clip); None: nothing.
        resizes: the path of positions that its library resizes, in each pass, to the size that pictures have: the
            config has the size that they were learned at, and the files beside it say the other; None: they are one.
        picture: the path of the image tokenizer whose mean and std a folder's preprocessing has.
        sound: the path of the audio tokenizer that a folder's preprocessing describes.
        classes: the paths of the heads whose classes ``id2label`` names.
        variant: whether it is another family with less choice: what both can say goes out as that, unless it came as
            this.
    """

    library: Library
    name: str
    template: str
    layouts: Mapping[str, Layout]
    fields: tuple[Field, ...]
    rules: Callable[[Data], Sequence[Rule]]
    seen: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Data] = lambda config, _: dict(config)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    text_end: TextEnd | None = None
    clean: Cleaning | None = None
    special: Mapping[str, str] = field(default_factory=SPECIAL.copy)
    unasked: bool = True
    resizes: str | None = None
    picture: str | None = None
    sound: str | None = None
    classes: tuple[str, ...] = ()
    variant: bool = False

    def spec(self, config: Mapping[str, Any], layout: str, where: str) -> ModelSpec:
        """What a config says.

        Raises:
            InputError: a key that is unknown or missing, a value that cannot be expressed, a class that is not the
                family's.
        """
        known = [key for each in self.fields for key in each.keys]
        common = COMMON[self.library]
        inner = [f"*_config.{key}" for key in common]
        require_known(config, known, (*common, *inner, *_inert(config), *self.ignored), where)
        whole = complete(config, self.defaults)
        data = read_config(whole, self._template(), self.fields, where)
        for path in self.classes:
            plain.put(data, f"{path}.classes", len(class_names(config)))
        for path in self.layouts[layout].without:
            plain.drop(data, path)
        return parse(ModelSpec, data, where)

    def config(self, spec: ModelSpec, layout: str, where: str) -> Data:
        """The config that says what a spec is.

        Raises:
            InputError: the reference has no way to say it; the first place that differs is told.
        """
        found = self._settled(spec, layout, where)
        for path in [path for path in self.text if self.has(path, layout)]:
            _require_rows(spec, path, where)
        # Of what a class has not, no value is asked for that no key says.
        said = [each for each in self.fields if each.keys or all(self.has(path, layout) for path in each.paths)]
        config = write_config(found, said, f"A config of {self.name}")
        for path in [path for path in self.classes if self.has(path, layout)]:
            if path.rpartition(".")[2] not in spec.heads:
                raise InputError(f"{where} is no {self.name} ({layout}): it has no {path}.")
            config["id2label"] = {str(i): f"LABEL_{i}" for i in range(plain.get(found, f"{path}.classes"))}
        if self.text_end is not None and self.has(self.text_end.path, layout):
            for key, value in self.text_end.said(spec, self.name, where).items():
                put(config, key, value)
        if told := self._difference(spec, self.spec(config, layout, where), layout, where):
            raise InputError(f"{where} is no {self.name} ({layout}): {told}.")
        return config

    def says(self, config: Mapping[str, Any], spec: ModelSpec, layout: str, where: str) -> bool:
        """Whether a config says what a spec is; several may, in other words."""
        if self._difference(spec, self.spec(config, layout, where), layout, where):
            return False
        end = self.text_end if self.text_end is not None and self.has(self.text_end.path, layout) else None
        return end is None or end.agrees(complete(config, self.defaults), spec)

    def weights(self, config: Mapping[str, Any], layout: str) -> list[Rule]:
        """The rules for a config and a class."""
        found, rules = self.layouts[layout], self.rules(complete(config, self.defaults))

        def named(theirs: str) -> str:
            for word, meant in {"base": found.prefix, **found.words}.items():
                theirs = theirs.replace(f"{{{word}}}", meant)
            return theirs

        return [replace(rule, theirs=tuple(named(name) for name in rule.theirs)) for rule in rules]

    def has(self, path: str, layout: str) -> bool:
        """Whether what stands at a path of the template is there in a class, too."""
        return not any(path == gone or path.startswith(f"{gone}.") for gone in self.layouts[layout].without)

    def _difference(self, spec: ModelSpec, said: ModelSpec, layout: str, where: str) -> str:
        """Where a spec differs first from what a config of a class says; "" where it is that."""
        ours, theirs = to_data(spec), to_data(said)
        for path in self.layouts[layout].without:  # what a class has not would be lost
            if (there := _at(ours, path)) != (other := _at(theirs, path)):
                return f"it has {path}, which that has not" if other is None else _difference(there, other, path)
        ours, theirs = (self._settled(each, layout, where) for each in (spec, said))
        return "" if ours == theirs else _difference(ours, theirs)

    def _template(self) -> Data:
        return template_data(self.template)

    def _settled(self, spec: ModelSpec, layout: str, where: str) -> Data:
        """The spec's plain data, with the template's own where the class has none, or where no config says it."""
        data: Data = to_data(spec)
        _name_pools(data)
        template = copy.deepcopy(self._template())
        try:
            unsaid = [path for path in self._unsaid() if self.has(path, layout)]
            for path in (*self.layouts[layout].without, *unsaid):
                plain.put(data, path, plain.get(template, path))
            heads = [f"{path}.classes" for path in self.classes if self.has(path, layout)]
            for path in [*(path for each in self.fields for path in each.paths), *heads]:
                plain.get(data, path)
        except KeyError as error:
            raise InputError(f"{where} is no {self.name} ({layout}): it has no {error.args[0]}.") from None
        _without_training(data, template, {path for each in self.fields for path in each.paths})
        return data

    def _unsaid(self) -> list[str]:
        """What other files than the config say: vocabularies, and how pictures and sounds are prepared."""
        text = ("vocabulary", "begin", "end", "prefix_space", "ids")
        found = [f"{path}.{name}" for path in self.text for name in text]
        said = {path for each in self.fields for path in each.paths}  # Mamba's does not say how long a text may be
        found += [path for each in self.text if (path := f"{each}.context_length") not in said]
        found += [f"{self.picture}.{name}" for name in ("mean", "std") if self.picture]
        found += [f"{self.resizes}.sizes", f"{self.picture}.remainder"] if self.resizes else []
        sound = ("rate", "window", "hop", "lowest", "highest", "mean", "std")
        return found + [f"{self.sound}.{name}" for name in sound if self.sound]


def _inert(config: Mapping[str, Any]) -> list[str]:
    """Keys of a config, and of those inside it, that are there and change nothing."""
    groups = {"": config, **{f"{name}.": inside for name, inside in config.items() if isinstance(inside, Mapping)}}
    return [f"{at}{key}" for at, said in groups.items() for key, value in INERT.items() if said.get(key, "") == value]


def _require_rows(spec: ModelSpec, path: str, where: str) -> None:
    """Refuse a table of ids whose rows only its vocabulary says: others' configs say them as a number."""
    kind, name, _ = path.split(".")
    tokenizer = getattr(spec, kind)[name].tokenizer
    if tokenizer.rows is None:
        rows = tokenizer.words().padded_size(64)
        raise InputError(
            f"{where} has no {path}.rows, the number of ids that others' configs say: set it in its model.yaml to "
            f"{rows}, as many as its table has."
        )


@cache
def template_data(name: str) -> Data:
    """The whole plain data of a file under configs/models/; it is shared, and must be copied before it is changed."""
    file = f"configs/models/{name}"
    data: Data = to_data(parse(ModelSpec, read_yaml(resources.find(file)), file))
    return data


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes that a config tells apart: two, where one of transformers says nothing."""
    named = config.get("label_names") or []  # timm's
    number = config.get("num_labels", config.get("num_classes", 2))
    known = named if len(named) == number and isinstance(named, list) else [f"LABEL_{i}" for i in range(number)]
    labels = config.get("id2label") or {str(i): name for i, name in enumerate(known)}
    return [labels[key] for key in sorted(labels, key=int)]


def _name_pools(data: Data) -> None:
    """Say of classifiers what they read: an embedding that is no more than what its pool makes is that pool's."""
    for head in data["heads"].values():
        own, plain_head = head["init_args"], head["class_path"] == "ClassificationHeadSpec"
        encoder = data["encoders"].get(own["encoder"]) if plain_head and own["pool"] is None else None
        if encoder is not None and encoder["embedding"] is None and encoder["norm"] is None:
            own["pool"] = copy.deepcopy(encoder["pool"])


def _without_training(data: Any, template: Any, kept: set[str], path: str = "") -> None:
    """Put the template's own in place of what is of training alone, but for the paths that a config says."""
    if not isinstance(data, dict) or not isinstance(template, dict):
        return
    for key in data.keys() & template.keys():
        place = path if key == "init_args" else f"{path}{'.' if path else ''}{key}"
        if key in TRAINING and place not in kept:
            data[key] = template[key]
        else:
            _without_training(data[key], template[key], kept, place)


def _at(data: Data, path: str) -> Any:
    """What stands at a path; None: nothing, or its place is not there."""
    try:
        return plain.get(data, path) or None
    except KeyError:
        return None


def _difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two plain data differ first."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            place = path if key == "init_args" else f"{path}{'.' if path else ''}{key}"
            if key not in theirs:
                return f"it has {place}, which that has not"
            if key not in ours:
                return f"it has no {place}"
            if ours[key] != theirs[key]:
                return _difference(ours[key], theirs[key], place)
    return f"its {path} is {ours!r:.200}, and such a model's would be {theirs!r:.200}"
