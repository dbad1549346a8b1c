#!/bin/sh
# Trains the vocabularies here on the embedded captions: a few seconds, the same bytes every time.
# Usage: tokenizers/build.sh [the mmformer command]
set -eu
cd "$(dirname "$0")/.."
mmformer="${1:-.venv/bin/mmformer}"
"$mmformer" vocabulary train data/emoji --split train --fields 'names.*' 'keywords.*' \
  --size 8192 --overwrite --output tokenizers/emoji-12.model
"$mmformer" vocabulary train data/emoji --split train --fields names.en keywords.en \
  --size 1536 --overwrite --output tokenizers/emoji-en.model
