"""Models for other sizes, words and uses: what of their weights stays, is resized, is new, is dropped."""
