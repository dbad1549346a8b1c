"""Shards from what people have: tables and folders, class trees, text files, other people's tars."""
