#!/bin/sh
# Trains the default vocabulary, tokenizers/emoji-12.model, on the embedded captions: a few seconds, the same bytes
# every time. Usage: tokenizers/build.sh [the mmformer command]
set -eu
cd "$(dirname "$0")/.."
"${1:-.venv/bin/mmformer}" vocabulary train data/emoji --split train --fields 'names.*' 'keywords.*' \
  --size 8192 --output tokenizers/emoji-12.model
