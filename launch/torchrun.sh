#!/usr/bin/env bash
# Train on every GPU of one machine, or of several, with torchrun.
#
#   launch/torchrun.sh --config configs/runs/emoji_full.yaml --output runs/full          # all GPUs of this machine
#   NODES=4 NODE_RANK=0 HEAD=node0:29500 launch/torchrun.sh --config ... --output ...    # the same on each machine,
#                                                                                        # with its own NODE_RANK
#   NODES=2:4 HEAD=node0:29500 RESTARTS=10 launch/torchrun.sh --config ... --output ...  # as many machines as there are
#   launch/torchrun.sh --dry-run --config ...                                            # print the command alone
#   launch/torchrun.sh --doctor --config ... --output ...                                # look at the machines instead
#
# GPUS is how many processes to start here (default: the GPUs that nvidia-smi lists). parallel.shard is set to all of
# them, unless the words have it: beside parallel.data or parallel.tensor it is smaller. All other words are fit's;
# --continue goes on from the last checkpoint, where there is one, and RESTARTS, how often processes are started again
# after one of them failed (default: 0), adds it. GRACE is how many seconds processes have, after SIGTERM, to write a
# checkpoint (default: 600). NODES may be a range where machines come and go: the run then goes on with those that are
# there, and data.batch_size and data.order.lanes have to be multiples of all numbers of processes that may be. --output
# must be a folder that all machines share. PYTHON is the interpreter (default: .venv/bin/python of this folder).
set -euo pipefail

dry=
does=fit
words=()
for word in "$@"; do
  case "$word" in
    --dry-run) dry=yes ;;
    --doctor) does=doctor ;;
    *) words+=("$word") ;;
  esac
done
set -- "${words[@]}"
if [[ $# -eq 0 || "$1" == -h || "$1" == --help ]]; then
  sed -n '2,/^set/p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'
  exit 0
fi

nodes=${NODES:-1}
restarts=${RESTARTS:-0}
grace=${GRACE:-600}
gpus=${GPUS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
if [[ "$gpus" -lt 1 ]]; then
  echo "launch/torchrun.sh: no GPU was found here: set GPUS to the number of processes to start." >&2
  exit 2
fi
if [[ ! "$nodes" =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]]; then
  echo "launch/torchrun.sh: NODES is '$nodes': set it to a number of machines, or to a range such as 2:4." >&2
  exit 2
fi
if [[ ! "$grace" =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/torchrun.sh: GRACE is '$grace': set it to a number of seconds." >&2
  exit 2
fi
if [[ "$nodes" != 1 && -z "${HEAD:-}" ]] || [[ "$nodes" =~ ^[0-9]+$ && "$nodes" -gt 1 && -z "${NODE_RANK:-}" ]]; then
  echo "launch/torchrun.sh: NODES is $nodes: set HEAD to the first machine's address and port (node0:29500), and," \
    "where it is no range, NODE_RANK to this machine's number, 0 to $((${nodes%%:*} - 1))." >&2
  exit 2
fi

if [[ "$nodes" == 1 ]]; then
  where=(--standalone --nnodes 1)
else
  where=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "${RUN_ID:-mmformer}")
  if [[ "$nodes" != *:* ]]; then where+=(--node-rank "$NODE_RANK"); fi
fi
if [[ "$does" == fit && ("$restarts" -gt 0 || "$nodes" == *:*) ]]; then set -- "$@" --continue; fi

python=${PYTHON:-.venv/bin/python}
command=("$python" -m mmformer.parallel.torchrun --grace "$grace" "${where[@]}")
command+=(--nproc-per-node "$gpus" --max-restarts "$restarts")
if [[ "$does" == doctor ]]; then
  command+=(--module mmformer doctor "$@")
elif [[ "$nodes" == *:* ]]; then
  # How many there are is known only where they have met.
  command+=(--no-python bash -c 'exec "$@" --parallel.shard "$WORLD_SIZE"' fit "$python" -m mmformer fit "$@")
else
  if [[ " $*" != *" --parallel.shard"* ]]; then set -- "$@" --parallel.shard $((nodes * gpus)); fi
  command+=(--module mmformer fit "$@")
fi

if [[ -n "$dry" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
