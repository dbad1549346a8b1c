"""Named systems against the libraries that they come from.

Four layers of the published width, with random weights; narrower where many experts would take minutes to save.
"""

from benchmarks.systems import pairs, pictures, sounds, texts  # noqa: F401  # their cases are known by being made
