"""The feature map of any of timm's models as an image's tokens: a hybrid's convolutional trunk, or a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmformer.errors import InputError, nearest
from mmformer.tokenizers.image import ImageTokenizer, ImageTokenizerSpec
from mmformer.tokenizers.tokenizer import grid_tokens
from mmformer.types import Patches, Tokens


@dataclass(frozen=True)
class TimmFeaturesSpec(ImageTokenizerSpec):
    """Each place of a feature map of a model of timm's (Wightman 2019), projected to the stack's width (ViT's hybrid,
    Dosovitskiy et al. 2020, §3.1, has a ResNet's).

    Nothing is downloaded. BatchNorm keeps the running statistics that it has, in training too: those of a batch would
    make an image's tokens depend on the rest of it, and on how many processes share it. To train the projection alone,
    freeze ``encoders.NAME.tokenizer.trunk.*``.

    Attributes:
        name: of an architecture, as ``timm.list_models()`` has it.
        level: which of its feature maps, 0 the first and finest, -1 the last.
        weights: a safetensors file of timm's, to begin with (a bundle has its own, and does not read it); None: they
            are drawn as timm draws them.
        image_size: height and width, for a model that is made for one size (Swin's); None: timm's own.
    """

    cost: ClassVar[str] = "that of the model"
    source: ClassVar[str] = "timm, Wightman 2019; ViT's hybrid: Dosovitskiy et al. 2020, §3.1"

    name: str = "resnet18"
    level: int = -1
    weights: str | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.feature_map  # noqa: B018  # a model that timm has not, or a level that it has not

    @property
    def feature_map(self) -> FeatureMap:
        """What timm says of it."""
        return _described(self.name, self.level, self.image_size)

    @property
    def stride(self) -> int:
        return self.feature_map.reduction

    def build(self, width: int) -> TimmFeatures:
        return TimmFeatures(self, width)


class FeatureMap(NamedTuple):
    """The size of a feature map."""

    channels: int
    reduction: int  # pixels from one place to the next


class TimmFeatures(ImageTokenizer):
    def __init__(self, spec: TimmFeaturesSpec, width: int) -> None:
        super().__init__(spec)
        self.trunk = TimmTrunk(spec)
        self.projection = nn.Linear(spec.feature_map.channels, width)

    def forward(self, image: Tensor | Patches) -> Tokens:  # B 3 H W, and no Patches
        """Tokens of pictures of one size.

        Raises:
            InputError: no such pictures, or of a size that the model of timm's does not take.
        """
        # Channels last in memory: the faster convolution on a CPU.
        x = self.trunk(self.normalise(image).contiguous(memory_format=torch.channels_last))  # B rows columns C
        return grid_tokens(self.projection(x.flatten(1, 2)), x.shape[1], x.shape[2])


class TimmTrunk(nn.Module):
    """timm's module, as it is, but for its BatchNorm."""

    resets_all_below = True
    """timm's modules cannot draw their parameters anew; a model that is made anew has them drawn."""

    def __init__(self, spec: TimmFeaturesSpec) -> None:
        super().__init__()
        self.spec = spec
        self.features = _create(spec.name, spec.level, spec.image_size)
        for module in self.features.modules():
            # Tables that timm would make again would be lost on the meta device: they are saved with the rest.
            for name, table in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, table, persistent=True)
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmTrunk:
        super().train(mode)
        for module in self.features.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters, and fill all buffers, as timm does; or take them from the file.

        Raises:
            InputError: no such file, or one that does not fit the model.
        """
        with torch.device("cpu"):
            made = _create(self.spec.name, self.spec.level, self.spec.image_size)
        if self.spec.weights is not None:
            _load(made.get_submodule("model"), self.spec)
        others = dict(made.named_parameters()) | dict(made.named_buffers())
        for name, value in [*self.features.named_parameters(), *self.features.named_buffers()]:
            value.copy_(others[name])

    def forward(self, x: Tensor) -> Tensor:  # B 3 H W -> B rows columns C
        try:
            y: Tensor = self.features(x)[0]  # B C rows columns
        except AssertionError as error:  # a model that is made for one size says so
            raise InputError(
                f"TimmFeaturesSpec.name is '{self.spec.name}', which refuses pictures of {x.shape[2]}x{x.shape[3]}: "
                f"{error} Set image_size to ({x.shape[2]}, {x.shape[3]}), or resize."
            ) from error
        return y.permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def _described(name: str, level: int, image_size: tuple[int, int] | None) -> FeatureMap:
    with torch.device("meta"):
        info: Any = _create(name, level, image_size).feature_info
    return FeatureMap(info.channels()[0], info.reduction()[0])


def _create(name: str, level: int, image_size: tuple[int, int] | None) -> nn.Module:
    """timm's model as far as a feature map, with drawn weights.

    Raises:
        InputError: timm has no such model, or the model no such feature map, or not for such a size.
    """
    import timm  # takes seconds to import, which models without it need not wait for

    if name not in timm.list_models():
        raise InputError(
            f"TimmFeaturesSpec.name is '{name}', but timm {timm.__version__} has no architecture of that name (weights "
            f"have names of their own: leave out what stands after a dot).{nearest(name, timm.list_models())}"
        )
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        # Of timm's ways to take features, the one that leaves out all that is past them, and keeps its names.
        made = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(level,), **size)
    except TypeError as error:
        raise InputError(
            f"TimmFeaturesSpec.image_size is {image_size}, but '{name}' is made for no size in particular, or has no "
            f"feature maps (timm: {error})."
        ) from error
    except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise InputError(
            f"TimmFeaturesSpec.level is {level}, but timm makes no such feature map of '{name}': {error}."
        ) from error
    assert isinstance(made, nn.Module)
    return made


def _load(model: nn.Module, spec: TimmFeaturesSpec) -> None:
    """Take a model's weights from those of timm's whole one; what stands past the feature map is left alone.

    Raises:
        InputError: the file is not there, cannot be read, or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = f"TimmFeaturesSpec.weights: {spec.weights}"
    if spec.weights is None or not Path(spec.weights).is_file():
        raise InputError(f"{where}: there is no such file: name a safetensors file of timm's '{spec.name}'.")
    try:
        state = load_file(spec.weights)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where}: it cannot be read as safetensors: {error}.") from error
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in state or state[name].shape != value.shape:
            found = f"has it as {tuple(state[name].shape)}" if name in state else "lacks it"
            raise InputError(f"{where}: timm's '{spec.name}' has {name}, {tuple(value.shape)}, but the file {found}.")
    model.load_state_dict({name: state[name] for name in wanted})
