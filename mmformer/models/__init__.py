"""Models: stacks, encoders and heads, put together by name. Importing it makes every part's spec known to YAML."""

import mmformer.nn
import mmformer.tokenizers
from mmformer.discovery import import_modules

import_modules("mmformer.tokenizers", mmformer.tokenizers.__path__)
import_modules(__name__, __path__)
