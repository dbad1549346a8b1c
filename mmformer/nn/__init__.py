"""The parts: pure PyTorch, single-device, each a spec (a frozen dataclass) and the module that it builds.

Importing the package imports every module in it, so that short class names (``AttentionSpec``) resolve in YAML: a new
mixer, position or feed-forward is one new file here and no edit elsewhere.
"""

from mmformer.discovery import import_modules

import_modules(__name__, __path__)
