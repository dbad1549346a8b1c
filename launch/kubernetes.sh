#!/usr/bin/env bash
# Train on GPUs of a Kubernetes cluster that has Kubeflow's training operator: one pod a machine, one process a GPU.
#
#   IMAGE=registry/mmformer:1 CLAIM=runs NODES=4 GPUS=8 launch/kubernetes.sh \
#     --config configs/runs/emoji_full.yaml --output /runs/full --checkpoint.every_steps 500
#   launch/kubernetes.sh --dry-run --config ... --output ...      # print the manifest alone; nothing is started
#   launch/kubernetes.sh --doctor --config ... --output ...       # look at the machines instead
#
# KIND is PyTorchJob (the operator's first version; default) or TrainJob (its second, with the runtime that RUNTIME
# names, default torch-distributed). NAME is the job's (default: mmformer), NAMESPACE where it runs. IMAGE has mmformer
# installed with its folder as the working directory. CLAIM is the persistent volume claim that all pods share, at MOUNT
# (default: /runs); --output has to be under it. Pods that fail or are preempted are started again, RESTARTS times
# (default: 10), and the run goes on from its last checkpoint. GRACE is how many seconds processes have, after SIGTERM, to
# write one (default: 600); pods have 30 more. A TrainJob cannot say that of its pods: set terminationGracePeriodSeconds
# in the runtime that it names, which is 30 otherwise. parallel.shard is set to all of the GPUs, unless the words have it:
# beside parallel.data or parallel.tensor it is smaller. All other words are fit's. kubectl is called once.
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
if [[ ${#words[@]} -eq 0 || "${words[0]}" == -h || "${words[0]}" == --help ]]; then
  sed -n '2,/^set/p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'
  exit 0
fi

fail() {
  echo "launch/kubernetes.sh: $*" >&2
  exit 2
}
kind=${KIND:-PyTorchJob}
name=${NAME:-mmformer}
nodes=${NODES:-1}
gpus=${GPUS:-1}
mount=${MOUNT:-/runs}
restarts=${RESTARTS:-10}
grace=${GRACE:-600}
output=
for ((i = 0; i < ${#words[@]}; i++)); do
  case "${words[i]}" in
    --output) output=${words[i + 1]:-} ;;
    --output=*) output=${words[i]#--output=} ;;
  esac
done
[[ "$kind" == PyTorchJob || "$kind" == TrainJob ]] || fail "KIND is '$kind': set it to PyTorchJob or TrainJob."
[[ "$nodes" =~ ^[1-9][0-9]*$ && "$gpus" =~ ^[1-9][0-9]*$ ]] || fail "NODES is '$nodes' and GPUS '$gpus': set numbers."
[[ "$grace" =~ ^[1-9][0-9]*$ ]] || fail "GRACE is '$grace': set it to a number of seconds."
[[ -n "${IMAGE:-}" ]] || fail "set IMAGE to a container image with mmformer in it."
[[ -n "${CLAIM:-}" ]] || fail "set CLAIM to a persistent volume claim that all pods share."
[[ "$output" == "$mount"/* ]] || fail "--output is '$output': it must be a folder under $mount, which all pods share."

quoted() { # a word as YAML has it between double quotes
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

entry() { # what a container runs, one word a line; $1 is the indent
  local each=(python -m mmformer.parallel.torchrun --grace "$grace" --max-restarts "$restarts")
  each+=(--module mmformer "$does" "${words[@]}")
  if [[ "$does" == fit ]]; then
    each+=(--continue)
    if [[ " ${words[*]}" != *" --parallel.shard"* ]]; then each+=(--parallel.shard "$((nodes * gpus))"); fi
  fi
  local word
  for word in "${each[@]}"; do printf '%s- %s\n' "$1" "$(quoted "$word")"; done
}

volumes() { # what a pod's only container mounts, and the pod has; $1 is the indent of the pod's fields
  cat <<END
$1  volumeMounts:
$1  - {name: runs, mountPath: $(quoted "$mount")}
$1  - {name: shared-memory, mountPath: /dev/shm}
$1volumes:
$1- name: runs
$1  persistentVolumeClaim: {claimName: $(quoted "$CLAIM")}
$1- name: shared-memory  # pods have 64 MiB of their own, too few for loaders
$1  emptyDir: {medium: Memory}
END
}

pod() { # a pod's template of a PyTorchJob
  cat <<END
      template:
        spec:
          terminationGracePeriodSeconds: $((grace + 30))
          containers:
          - name: pytorch
            image: $(quoted "$IMAGE")
            command:
$(entry "            ")
            resources: {limits: {nvidia.com/gpu: $gpus}}
$(volumes "          ")
END
}

pytorch_job() {
  cat <<END
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata:
  name: $(quoted "$name")
spec:
  nprocPerNode: "$gpus"
  runPolicy: {backoffLimit: $restarts, cleanPodPolicy: Running}
  pytorchReplicaSpecs:
    Master:
      replicas: 1
      restartPolicy: OnFailure
$(pod)
END
  if [[ "$nodes" -gt 1 ]]; then
    cat <<END
    Worker:
      replicas: $((nodes - 1))
      restartPolicy: OnFailure
$(pod)
END
  fi
}

train_job() {
  cat <<END
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: $(quoted "$name")
spec:
  runtimeRef: {name: $(quoted "${RUNTIME:-torch-distributed}")}
  trainer:
    image: $(quoted "$IMAGE")
    numNodes: $nodes
    numProcPerNode: $gpus
    command:
$(entry "    ")
    resourcesPerNode: {limits: {nvidia.com/gpu: $gpus}}
  podTemplateOverrides:
  - targetJobs: [{name: node}]
    spec:
      containers:
      - name: node
$(volumes "      ")
END
}

if [[ "$kind" == PyTorchJob ]]; then manifest=$(pytorch_job); else manifest=$(train_job); fi
if [[ -n "$dry" ]]; then
  echo "$manifest"
  exit 0
fi
command -v kubectl > /dev/null || fail "kubectl is not installed here; --dry-run prints the manifest."
kubectl ${NAMESPACE:+--namespace "$NAMESPACE"} apply --filename - <<< "$manifest"
