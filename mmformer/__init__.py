"""mmformer: a multimodal Transformer framework for text, vision and audio.

    import mmformer

    model = mmformer.load("runs/emoji_quickstart/bundle")
    model.classify("cat.png", ["cat", "dog"])

Importing the package imports nothing heavy; ``load`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmformer.predictor import Predictor, load

__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mmformer import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'mmformer' has no attribute '{name}'")
