#!/usr/bin/env bash
# Train on every GPU of one machine, or of several, with torchrun.
#
#   launch/torchrun.sh --config configs/runs/emoji_full.yaml --output runs/full          # all GPUs of this machine
#   NODES=4 NODE_RANK=0 HEAD=node0:29500 launch/torchrun.sh --config ... --output ...    # the same on each machine,
#                                                                                        # with its own NODE_RANK
#   launch/torchrun.sh --dry-run --config ...                                            # print the command alone
#
# GPUS is how many processes to start here (default: the GPUs that nvidia-smi lists). parallel.shard is set to all of
# them. All other words are fit's; --resume goes on from the last checkpoint. --output must be a folder that all
# machines share. PYTHON is the interpreter (default: .venv/bin/python of this folder).
set -euo pipefail

dry=
words=()
for word in "$@"; do
  if [[ "$word" == --dry-run ]]; then dry=yes; else words+=("$word"); fi
done
set -- "${words[@]}"
if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then
  sed -n '2,/^set/p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'
  exit 0
fi

nodes=${NODES:-1}
gpus=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if [[ "$gpus" -lt 1 ]]; then
  echo "launch/torchrun.sh: no GPU was found here: set GPUS to the number of processes to start." >&2
  exit 2
fi
if [[ "$nodes" -gt 1 && ( -z "${HEAD:-}" || -z "${NODE_RANK:-}" ) ]]; then
  echo "launch/torchrun.sh: NODES is $nodes: set HEAD to the first machine's address and port (node0:29500), and" \
    "NODE_RANK to this machine's number, 0 to $((nodes - 1))." >&2
  exit 2
fi

if [[ "$nodes" -eq 1 ]]; then
  where=(--standalone --nnodes 1)
else
  where=(--nnodes "$nodes" --node-rank "$NODE_RANK" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${RUN_ID:-mmformer}")
fi
command=("${PYTHON:-.venv/bin/python}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus"
  --module mmformer fit "$@" --parallel.shard $((nodes * gpus)))

if [[ -n "$dry" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
