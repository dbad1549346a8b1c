#!/usr/bin/env bash
# Train on GPUs of a SLURM cluster: one process a GPU. Three minutes before its time is over, a job writes a checkpoint
# and puts itself back into the queue; one that is preempted, or loses a machine, is put there by SLURM. Either goes on
# from the last checkpoint, of which a machine that is lost leaves only what checkpoint.every_steps asked for.
#
#   sbatch --nodes 4 --gpus-per-node 8 --ntasks-per-node 8 --time 24:00:00 launch/slurm.sh \
#     --config configs/runs/emoji_full.yaml --output runs/full --checkpoint.every_steps 500
#   NODES=4 GPUS=8 launch/slurm.sh --dry-run --config ... --output ...      # print what a job would start
#   sbatch ... launch/slurm.sh --doctor --config ... --output ...           # look at the job's machines instead
#
# --ntasks-per-node and --gpus-per-node must be equal. parallel.shard is set to all of the tasks, unless the words have
# it: beside parallel.data or parallel.tensor it is smaller. All other words are fit's; --output is required, a folder
# that all machines share. PYTHON is the interpreter (default: .venv/bin/python of the folder that sbatch is called from).
#SBATCH --job-name mmformer
#SBATCH --cpus-per-task 8
#SBATCH --requeue
#SBATCH --signal TERM@180
#SBATCH --open-mode append
#SBATCH --output mmformer-%j.log
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
  sed -n '2,/^#SBATCH/p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'
  exit 0
fi

output=
for ((i = 0; i < ${#words[@]}; i++)); do
  case "${words[i]}" in
    --output) output=${words[i + 1]:-} ;;
    --output=*) output=${words[i]#--output=} ;;
  esac
done
if [[ -z "$output" ]]; then
  echo "launch/slurm.sh: --output DIR is required: a job that is put back into the queue goes on from there." >&2
  exit 2
fi
if [[ -z "$dry" && -z "${SLURM_JOB_ID:-}" ]]; then
  echo "launch/slurm.sh: this is for sbatch; --dry-run prints what a job would start." >&2
  exit 2
fi

if [[ -n "$dry" ]]; then
  tasks=$((${NODES:-1} * ${GPUS:-1}))
else
  tasks=$SLURM_NTASKS
fi
if [[ "$does" == fit ]]; then
  words+=(--continue)
  if [[ " ${words[*]}" != *" --parallel.shard"* ]]; then words+=(--parallel.shard "$tasks"); fi
fi
# srun has not taken over what sbatch was given of CPUs since SLURM 22.05.
command=(srun --kill-on-bad-exit=1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-8}" "${PYTHON:-.venv/bin/python}" -m mmformer "$does" "${words[@]}")

if [[ -n "$dry" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
# Where the processes meet: on the first of the machines.
if [[ -z "${MASTER_ADDR:-}" && -n "${SLURM_JOB_NODELIST:-}" ]]; then
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  export MASTER_ADDR
fi
code=0
"${command[@]}" || code=$?
# 130 is what fit says where a signal stopped it, with a checkpoint; the others are the signal's own (USR1, TERM), where
# training had not begun, or was over.
if [[ $code -eq 130 || $code -eq 138 || $code -eq 143 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
