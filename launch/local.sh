#!/usr/bin/env bash
# Prepares, trains and evaluates a config on this machine, making the environment first if needed.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/local.sh [--config FILE] [--config.KEY=VALUE ...] [--workdir DIR]
       launch/local.sh --install-only
       launch/local.sh --dry-run [...]

Makes the environment .venv at the project root (the first time, and again when setup.cfg or
Python changed) with the JAX that fits this machine: NVIDIA GPU, Cloud TPU or CPU. Then runs
`jaxpretrain prepare`, `train` and `evaluate` with the config, by default configs/quickstart.py.

  --config FILE          the config; also as --config=FILE
  --config.KEY=VALUE     change one of its values; may be given more than once
  --workdir DIR          where to write the run (default: runs/ and the config's name)
  --install-only         make the environment and stop
  --dry-run              print the commands and run none
  -h, --help             print this

environment variables:
  PYTHON                 the interpreter to use (3.11 or newer)
  JAXPRETRAIN_DEVICE     cpu, cuda12, cuda13 or tpu, instead of what is found
  JAXPRETRAIN_EXTRAS     extras of setup.cfg to install (default: tfds,parquet)
TEXT
}

default=$root/configs/quickstart.py
config=
workdir=
install_only=
dry=
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --install-only) install_only=yes ;;
    --dry-run) dry=yes ;;
    --config | --workdir)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      if [ "$1" = --config ]; then config=$2; else workdir=$2; fi
      shift
      ;;
    --config=?*) config=${1#--config=} ;;
    --workdir=?*) workdir=${1#--workdir=} ;;
    --config.?*=*) overrides+=("$1") ;;
    --config.?*)
      [ $# -ge 2 ] || usage_error "$1 has no value: write $1=VALUE"
      overrides+=("$1=$2")
      shift
      ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
  shift
done

config=${config:-$default}
if [ -z "$install_only" ]; then
  [ -f "${config%%:*}" ] || usage_error "there is no config file '${config%%:*}'"
fi
device=$(detect_device) || exit
say "device: $device"
# Where the extra `plan` brought libtpu along, JAX would look for a TPU, and complain at length.
if [ "$device" = cpu ]; then export JAX_PLATFORMS=${JAX_PLATFORMS-cpu}; fi
extras=${JAXPRETRAIN_EXTRAS-tfds,parquet}
if [ -n "$dry" ]; then
  [ "$device" = cpu ] || extras=$(union "$extras" "$device")
  printf '%q -m venv %q\n' "$(find_python)" "$venv"
  printf '%q -m pip install -e %q\n' "$venv/bin/python" "$root${extras:+[$extras]}"
else
  ensure_env "$device" "$extras"
fi
[ -z "$install_only" ] || exit 0

for command in prepare train evaluate; do
  set -- "$command" "--config=$config" ${overrides[@]+"${overrides[@]}"}
  # The store that `prepare` writes belongs to no run; the config says where it is.
  if [ -n "$workdir" ] && [ "$command" != prepare ]; then set -- "$@" "--workdir=$workdir"; fi
  [ -n "$dry" ] || say "jaxpretrain $*"
  do_it "$venv/bin/jaxpretrain" "$@"
done
