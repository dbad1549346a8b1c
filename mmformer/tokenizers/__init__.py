"""Modality tokenizers: raw values in, Tokens out. ``vocabulary`` alone imports no torch."""
