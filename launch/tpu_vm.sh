#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it, installs, runs on all its workers, resumes, deletes it.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE [OPTIONS] -- TRAIN ARGUMENTS
       launch/tpu_vm.sh --name NAME --zone ZONE --delete

Makes the TPU slice NAME (if it is not there), installs this project on all its workers, runs
`jaxpretrain train --distributed` there with the arguments, and shows the log of the first worker.
(Arguments that begin with `ablate` are for `jaxpretrain ablate`; see launch/sweep.sh.)
If the slice is preempted it is made again and the run goes on from its last checkpoint. The same
command again does what is missing: it joins a run that is under way, or resumes one that is not.

  launch/tpu_vm.sh --name lm --zone us-central2-b --type v4-32 --spot -- \
    --config=configs/llama_1b.py --workdir=gs://bucket/lm --config.store.path=gs://bucket/store

  --type TYPE         as Google calls it: v5litepod-16, v5p-128, v6e-64 …
  --version VERSION   of the TPU's software (default: by the type)
  --project PROJECT   (default: gcloud's own)
  --spot              cheaper, and preempted when Google needs it
  --queued            wait in line for it, as a queued resource
  --restarts N        how often to make it again after preemption (default: 100)
  --keep              do not delete the slice when the run is over
  --delete            delete the slice and do nothing else
  --dry-run           print the commands and run none
  -h, --help          print this

The workdir and the token store must be where all workers see them: in a bucket, or on a disk that
all of them have. Needs gcloud, logged in.
TEXT
}

name='' zone='' type='' version='' project='' spot='' queued='' keep='' delete='' dry=''
restarts=100
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --name | --zone | --type | --version | --project | --restarts)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --name=* | --zone=* | --type=* | --version=* | --project=* | --restarts=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --spot) spot=yes ;;
    --queued) queued=yes ;;
    --keep) keep=yes ;;
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
[ -n "$zone" ] || usage_error "--zone is missing"
if [ -z "$delete" ]; then
  [ -n "$type" ] || usage_error "--type is missing"
  [ $# -gt 0 ] || usage_error "there are no arguments for training after --"
fi
case $type in
  v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
  v5p-*) version=${version:-v2-alpha-tpuv5} ;;
  v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
  *) version=${version:-tpu-ubuntu2204-base} ;;
esac
where=(--zone "$zone" ${project:+--project "$project"})

# Runs gcloud and lets its errors be seen; with --dry-run only prints.
tpu() {
  if [ -n "$dry" ]; then
    printf 'gcloud compute tpus'
    printf ' %q' "$@"
    printf '\n'
  else
    gcloud compute tpus "$@"
  fi
}

state() { # prints the state of the slice; MISSING if there is none
  local answer
  if [ -n "$dry" ]; then
    echo "${1-MISSING}"
  elif answer=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
    --format='value(state)' 2>&1); then
    echo "$answer"
  else
    case $answer in
      *NOT_FOUND* | *'not found'*) echo MISSING ;;
      *) die "gcloud could not describe $name: $answer" ;;
    esac
  fi
}

make() {
  say "making $name ($type, ${spot:+spot, }$zone)"
  if [ -z "$queued" ]; then
    tpu tpu-vm create "$name" "${where[@]}" --accelerator-type "$type" --version "$version" \
      ${spot:+--spot} || die "gcloud could not make $name: see its message above"
    return
  fi
  tpu queued-resources create "$name" --node-id "$name" "${where[@]}" \
    --accelerator-type "$type" --runtime-version "$version" ${spot:+--spot} ||
    die "gcloud could not queue $name: see its message above"
  [ -z "$dry" ] || return 0
  local queue=''
  while :; do
    queue=$(tpu queued-resources describe "$name" "${where[@]}" --format='value(state.state)') ||
      die "gcloud could not describe the queued resource $name"
    case $queue in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        tpu queued-resources describe "$name" "${where[@]}" >&2 || true
        die "the queued resource $name is $queue: see above"
        ;;
    esac
    say "$name is $queue in the queue"
    sleep "${JAXPRETRAIN_POLL_SECONDS:-30}"
  done
}

remove() {
  if [ -n "$queued" ]; then
    tpu queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    tpu tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

on_all() { # COMMAND
  tpu tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

install() {
  local folder status=0
  say "installing on all workers of $name"
  folder=$(mktemp -d)
  pack_source | gzip >"$folder/jaxpretrain.tar.gz" &&
    tpu tpu-vm scp "$folder/jaxpretrain.tar.gz" "$name:" "${where[@]}" --worker=all &&
    on_all 'mkdir -p jaxpretrain && tar -xzf jaxpretrain.tar.gz -C jaxpretrain &&
      JAXPRETRAIN_DEVICE=tpu JAXPRETRAIN_EXTRAS=tfds,parquet,gcs jaxpretrain/launch/local.sh --install-only' || status=$?
  rm -rf "$folder"
  return "$status"
}

# Begins the run in the background on every worker, unless it is under way there: it does not end
# with the connection. Then follows the log of the first worker, and ends as the run does.
train() {
  local arguments begin follow command=train
  if [ "$1" = ablate ]; then
    command=ablate
    shift
  fi
  printf -v arguments ' %q' "$@"
  begin="cd jaxpretrain && if [ -f run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then :; else
    rm -f run.status; nohup sh -c '.venv/bin/jaxpretrain $command --distributed \"\$@\"
      echo \$? >run.status' train$arguments >run.log 2>&1 & echo \$! >run.pid; fi"
  # shellcheck disable=SC2016 # the worker expands it
  follow='cd jaxpretrain && tail -n +1 --pid=$(cat run.pid) -F run.log; exit $(cat run.status)'
  on_all "$begin" && tpu tpu-vm ssh "$name" "${where[@]}" --worker=0 --command "$follow"
}

if [ -n "$delete" ]; then
  remove
  exit
fi
for ((attempt = 0; attempt <= restarts; attempt++)); do
  now=$(state) || exit
  case $now in
    MISSING) make ;;
    READY) say "$name is there" ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED)
      say "$name is $now"
      remove
      make
      ;;
    *) die "$name is $now: wait, or delete it with --delete" ;;
  esac
  status=0
  { install && train "$@"; } || status=$?
  if [ "$status" = 0 ]; then
    [ -n "$keep" ] || remove
    exit 0
  fi
  now=$(state READY) || exit
  if [ "$now" = READY ] && [ "$status" != 75 ]; then
    die "the run ended with status $status; $name is still there: mend and run the same command," \
      "or delete it with --delete"
  fi
  say "preempted: $name is $now, the run ended with status $status; going on"
done
die "$name was preempted more than $restarts times"
