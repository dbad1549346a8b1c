"""What some mixers can and others cannot. A combination that needs it is refused when its spec is built."""

from __future__ import annotations

from typing import Literal

Ability = Literal["causal", "prefix", "cache", "cross", "padding", "packing", "rotary", "rotary_heads", "bias"]

MEANINGS: dict[Ability, str] = {
    "causal": "lets a token see itself and those before it alone",
    "prefix": "lets the first tokens of a causal pass be seen by all",
    "cache": "goes on from earlier tokens, as decoding does",
    "cross": "reads a memory",
    "padding": "passes over tokens that are not valid",
    "packing": "keeps the segments of a row apart",
    "rotary": "has queries and keys to rotate",
    "rotary_heads": "has a key for each query, to rotate by a table of each head's own",
    "bias": "has scores to add a bias to",
}
