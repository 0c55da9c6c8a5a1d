#!/usr/bin/env bash
# Packs the project and all that it needs into one file, for a machine without a network.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/bundle.sh [--device DEVICE] [--extras EXTRAS] [--output FILE] [--dry-run]

Writes a .tar.gz with this project and the wheels of everything it needs, from which its scripts
install there. On the machine without a network:

  tar -xzf jaxpretrain-cuda12.tar.gz && cd jaxpretrain-cuda12
  launch/local.sh --config configs/mlm.py

  --device DEVICE     cpu, cuda12, cuda13 or tpu: what that machine has (default: cuda12)
  --extras EXTRAS     of setup.cfg (default: tfds,parquet)
  --output FILE       (default: jaxpretrain-DEVICE.tar.gz)
  --dry-run           print the commands and run none
  -h, --help          print this

environment variables:
  PYTHON              the interpreter whose wheels are packed (3.11 or newer)

That machine needs a Python of the same minor version and the same kind of processor and system as
this one. Its GPU driver is its own; CUDA's libraries are in the bundle (with cuda12, about 5 GB).
TEXT
}

device=cuda12 extras=tfds,parquet output='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --device | --extras | --output)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --device=* | --extras=* | --output=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --dry-run) dry=yes ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
  shift
done
case $device in
  cpu) wanted=$extras ;;
  cuda12 | cuda13 | tpu) wanted=$(union "$extras" "$device") ;;
  *) usage_error "--device is '$device', not cpu, cuda12, cuda13 or tpu" ;;
esac
name=jaxpretrain-$device
output=${output:-$name.tar.gz}
[ -d "$(dirname "$output")" ] || usage_error "there is no folder $(dirname "$output") for --output"
python=$(find_python) || exit

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/$name
mkdir -p "$bundle" "$work/source"
pack_source | tar -xf - -C "$bundle"
cp -R "$bundle/." "$work/source" # where pip may build
say "collecting wheels for $device with $python"
# setuptools is what pip builds the project with.
do_it "$python" -m pip wheel -q --disable-pip-version-check --wheel-dir "$bundle/wheels" \
  "$work/source${wanted:+[$wanted]}" 'setuptools>=68' ||
  die "pip could not collect the wheels: see its message above"
rm -f "$bundle"/wheels/jaxpretrain-*
mkdir -p "$bundle/wheels"
cat >"$bundle/wheels/bundle.sh" <<TEXT
# Sourced by launch/env.sh.
export PIP_NO_INDEX=1 PIP_FIND_LINKS=\$root/wheels
JAXPRETRAIN_DEVICE=\${JAXPRETRAIN_DEVICE-$device}
JAXPRETRAIN_EXTRAS=\${JAXPRETRAIN_EXTRAS-$extras}
PYTHON=\${PYTHON:-python$(version_of "$python")}
TEXT
do_it tar -czf "$output" -C "$work" "$name"
say "wrote $output"
