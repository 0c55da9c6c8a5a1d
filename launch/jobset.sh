#!/usr/bin/env bash
# Trains on a Kubernetes cluster, as a JobSet: TPU slices of GKE, or nodes with NVIDIA GPUs.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/jobset.sh --name NAME --image IMAGE --tpu KIND:SHAPE [OPTIONS] -- TRAIN ARGUMENTS
       launch/jobset.sh --name NAME --image IMAGE --gpus N [--nodes N] [OPTIONS] -- TRAIN ARGUMENTS
       launch/jobset.sh --name NAME --delete

Writes the manifest of a JobSet that runs `jaxpretrain train` with the arguments, one process for
each machine, gives it to kubectl, and follows the log of the first process. What preempts a machine
restarts the whole from its last checkpoint; an error in the arguments (status 2) ends it.

  launch/jobset.sh --name lm --image europe-docker.pkg.dev/p/lm/jaxpretrain:1 --tpu v5p:2x2x4 -- \
    --config=configs/llama_1b.py --workdir=gs://bucket/lm --config.store.path=gs://bucket/store

  --image IMAGE       has jaxpretrain and configs/ in its working folder; see launch/Dockerfile
  --tpu KIND:SHAPE    the slice: v4, v5e, v5p or v6e, and its topology, such as v5e:4x4
  --slices N          how many slices (default: 1)
  --gpus N            NVIDIA GPUs of each node
  --nodes N           how many nodes with GPUs (default: 1)
  --namespace NAME    (default: kubectl's own)
  --service-account S of the pods, for reading and writing gs:// (default: the namespace's)
  --restarts N        how often to start again (default: 100)
  --grace SECONDS     from SIGTERM until a pod is killed (default: 90): more than the config's
                      checkpoint.grace_seconds
  --delete            delete the JobSet and do nothing else
  --dry-run           print the manifest and the commands, run none
  -h, --help          print this

Needs kubectl 1.31 or newer, logged in, and JobSet (jobset.sigs.k8s.io) in the cluster.
TEXT
}

name='' image='' tpu='' gpus='' namespace='' service_account='' delete='' dry=''
slices=1 nodes=1 restarts=100 grace=90
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --name | --image | --tpu | --slices | --gpus | --nodes | --namespace | --service-account | \
      --restarts | --grace)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" '%s' "$2"
      shift
      ;;
    --name=* | --image=* | --tpu=* | --slices=* | --gpus=* | --nodes=* | --namespace=* | \
      --service-account=* | --restarts=* | --grace=*)
      option=${1%%=*}
      option=${option#--}
      printf -v "${option//-/_}" '%s' "${1#*=}"
      ;;
    --delete) delete=yes ;;
    --dry-run) dry=yes ;;
    --)
      shift
      break
      ;;
    *) usage_error "unknown argument '$1': arguments for training come after --" ;;
  esac
  shift
done
[ -n "$name" ] || usage_error "--name is missing"
# Pods are called NAME-train-0-0-xxxxx, and a label has 63 characters.
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  usage_error "--name is '$name': at most 40 small letters, digits and dashes, beginning with a letter"
if [ -z "$delete" ]; then
  [ -n "$image" ] || usage_error "--image is missing"
  [ -n "$tpu$gpus" ] || usage_error "--tpu or --gpus is missing"
  [ -z "$tpu" ] || [ -z "$gpus" ] || usage_error "--tpu and --gpus exclude each other"
  [ $# -gt 0 ] || usage_error "there are no arguments for training after --"
fi
for option in slices nodes restarts grace ${gpus:+gpus}; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] || usage_error "--$option is '${!option}', not a positive number"
done

kubectl() {
  if [ -n "$dry" ]; then
    { printf 'kubectl' && printf ' %q' "$@" && printf '\n'; } >&3
  else
    command kubectl "$@"
  fi
}
exec 3>&1 # where --dry-run prints
within=(${namespace:+--namespace "$namespace"})

if [ -n "$delete" ]; then
  kubectl delete jobset "$name" ${within[@]+"${within[@]}"}
  exit
fi

# A string of JSON, which is one of YAML. Kubernetes would fill in $(NAME) in arguments.
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

for argument in "$image" "$service_account" "$@"; do
  [[ $argument != *[[:cntrl:]]* ]] ||
    usage_error "an argument has a control character: $(printf %q "$argument")"
done

if [ -n "$tpu" ]; then
  kind=${tpu%%:*} shape=${tpu#*:} chips=1
  [[ $tpu =~ ^[a-z0-9]+:[0-9]+(x[0-9]+)+$ ]] || usage_error "--tpu is '$tpu', not like v5e:4x4"
  for size in ${shape//x/ }; do chips=$((chips * size)); done
  case $kind in
    v4) accelerator='tpu-v4-podslice' ;;
    v5e) accelerator='tpu-v5-lite-podslice' ;;
    v5p) accelerator='tpu-v5p-slice' ;;
    v6e) accelerator='tpu-v6e-slice' ;;
    *) usage_error "--tpu is of kind '$kind', not v4, v5e, v5p or v6e" ;;
  esac
  # A machine has four chips; of v5e and v6e there are machines with one and with eight as well.
  each=4
  case $kind in v5e | v6e) if [ "$chips" -le 8 ]; then each=$chips; fi ;; esac
  [ $((chips % each)) = 0 ] || usage_error "--tpu is '$tpu': $chips chips are not whole machines of $each"
  machines=$((chips / each)) resource=google.com/tpu
  others=(--distributed)
else
  slices=1 machines=$nodes each=$gpus resource=nvidia.com/gpu others=()
  if [ "$nodes" -gt 1 ]; then
    others=("--coordinator=$name-train-0-0.$name:8476" "--processes=$nodes"
      "--process=\$(JOB_COMPLETION_INDEX)")
  fi
fi

manifest() {
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
TEXT
  if [ -n "$tpu" ]; then
    cat <<'TEXT'
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
TEXT
  fi
  cat <<TEXT
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - name: wrong-arguments
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: train
    replicas: $slices
    template:
      spec:
        parallelism: $machines
        completions: $machines
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace
TEXT
  if [ -n "$service_account" ]; then
    echo "            serviceAccountName: $(quoted "$service_account")"
  fi
  if [ -n "$tpu" ]; then
    cat <<TEXT
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $shape
TEXT
  fi
  cat <<TEXT
            containers:
            - name: train
              image: $(quoted "$image")
              command: [jaxpretrain, train]
              args:
TEXT
  for argument in ${others[@]+"${others[@]}"}; do echo "              - \"$argument\""; done
  for argument; do echo "              - $(quoted "$argument")"; done
  cat <<TEXT
              ports:
              - containerPort: 8471
              - containerPort: 8476
              resources:
                limits:
                  $resource: $each
              volumeMounts:
              - name: shared-memory
                mountPath: /dev/shm
            volumes:
            - name: shared-memory
              emptyDir:
                medium: Memory
TEXT
}

text=$(manifest "$@") || exit
if [ -n "$dry" ]; then printf '%s\n' "$text"; fi
say "$name: $slices x $machines machines with $each of $resource"
kubectl apply ${within[@]+"${within[@]}"} -f - <<<"$text" ||
  die "kubectl could not make the JobSet $name: see its message above"
# The pod may wait for a machine for long; whoever stops following does not stop the run.
kubectl wait ${within[@]+"${within[@]}"} --for=create --timeout=10m "job/$name-train-0" >&2 ||
  die "the JobSet $name has made no job: kubectl describe jobset $name"
say "following the log of the first process; the run goes on without it"
kubectl logs ${within[@]+"${within[@]}"} --follow --pod-running-timeout=24h \
  --selector "batch.kubernetes.io/job-name=$name-train-0,batch.kubernetes.io/job-completion-index=0"
