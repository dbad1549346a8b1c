"""Adapters: small parts that are put into a model from outside, and train in its place. One file each; importing the
package imports them all.
"""

from mmformer.discovery import import_modules

import_modules(__name__, __path__)
