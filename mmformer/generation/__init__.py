"""Writing with a decoder: greedy, sampled or by beams, always with a cache. Importing the package imports them all."""

from mmformer.discovery import import_modules

import_modules(__name__, __path__)
