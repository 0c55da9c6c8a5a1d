#!/usr/bin/env bash
# Runs the cells of an ablation side by side: as a SLURM array, or on several Cloud TPU slices.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/sweep.sh --on slurm --config FILE [OPTIONS] [--config.KEY=VALUE ...] [-- SBATCH OPTIONS]
       launch/sweep.sh --on tpu --name NAME --config FILE [OPTIONS] [...] -- TPU_VM OPTIONS

Runs each cell of an ablation as a job of its own, from the file that `jaxpretrain ablate` runs one
after another on a laptop. The token stores are prepared here first. The same command again goes on
with the cells that are not done; `jaxpretrain ablate` with the same arguments shows the results.

  launch/sweep.sh --on slurm --config configs/ablations/mask_rate.py --workdir /shared/rates -- \
    --nodes=1 --time=2:00:00
  launch/sweep.sh --on tpu --name rates --config configs/ablations/mask_rate.py \
    --workdir gs://bucket/rates --config.store.path=gs://bucket/store -- \
    --zone us-central1-a --type v5litepod-8 --spot

  --config FILE       of the ablation
  --workdir DIR       where all machines see it (default: runs/ablations/ and the file's name;
                      on tpu there is none)
  --at-once N         cells that run at the same time (default: 4)
  --name NAME         of the job or of the slices (default: the file's name)
  --dry-run           print the commands and run none
  -h, --help          print this

What comes after -- is for `sbatch` (see launch/slurm.sbatch) or for launch/tpu_vm.sh.
Needs the environment that launch/local.sh --install-only makes.
TEXT
}

on='' config='' workdir='' name='' dry='' at_once=4
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --on | --config | --workdir | --name | --at-once)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" '%s' "$2"
      shift
      ;;
    --on=* | --config=* | --workdir=* | --name=* | --at-once=*)
      option=${1%%=*}
      option=${option#--}
      printf -v "${option//-/_}" '%s' "${1#*=}"
      ;;
    --config.?*=*) overrides+=("$1") ;;
    --dry-run) dry=yes ;;
    --)
      shift
      break
      ;;
    *) usage_error "unknown argument '$1': those for sbatch and tpu_vm.sh come after --" ;;
  esac
  shift
done
case $on in
  slurm | tpu) ;;
  '') usage_error "--on is missing: slurm or tpu" ;;
  *) usage_error "--on is '$on', not slurm or tpu" ;;
esac
[ -n "$config" ] || usage_error "--config is missing"
[[ $at_once =~ ^[1-9][0-9]*$ ]] || usage_error "--at-once is '$at_once', not a positive number"
program=$venv/bin/jaxpretrain
[ -x "$program" ] || usage_error "there is no $program: run launch/local.sh --install-only first"
file=${config%%:*}
default=${file##*/}
default=${default%.py}
case $config in *:*) default=$default-${config#*:} ;; esac
if [ "$on" = tpu ]; then
  case $workdir in
    gs://* | /*) ;;
    *) usage_error "--workdir is '$workdir': slices are deleted, so it must be in gs:// or on a shared disk" ;;
  esac
fi
workdir=${workdir:-runs/ablations/$default}
if [ -z "$name" ]; then name=$(tr '_[:upper:]' '-[:lower:]' <<<"$default"); fi
ablate=(ablate "--config=$config" "--workdir=$workdir" ${overrides[@]+"${overrides[@]}"})

cells=()
listed=$("$program" "${ablate[@]}" --list) || exit
while IFS= read -r cell; do cells+=("$cell"); done <<<"$listed"
say "${#cells[@]} cells: ${cells[*]}"

do_it "$program" "${ablate[@]}" --prepare

if [ "$on" = slurm ]; then
  do_it sbatch --job-name="$name" --array="0-$((${#cells[@]} - 1))%$at_once" \
    --output=%x-%a-%A.log "$@" "$root/launch/slurm.sbatch" "${ablate[@]}" ||
    die "sbatch refused the jobs: see its message above"
  exit
fi

# Each cell has a slice of its own, and a log here; a slice that fails stops no other.
failed=()
launch_cell() { # NUMBER TPU_VM OPTIONS: also prints with --dry-run
  local number=$1
  shift
  do_it "$root/launch/tpu_vm.sh" --name "$name-$number" "$@" -- "${ablate[@]}" "--cell=$number"
}
if [ -n "$dry" ]; then
  for number in "${!cells[@]}"; do launch_cell "$number" "$@"; done
  exit
fi
jobs=() # of process ids, by the cell's number
finish() { # NUMBER: waits for a cell
  local status=0
  wait "${jobs[$1]}" || status=$?
  if [ "$status" = 0 ]; then
    say "cell ${cells[$1]}: done"
  else
    say "cell ${cells[$1]}: failed with status $status (see $name-$1.log)"
    failed+=("${cells[$1]}")
  fi
}
for number in "${!cells[@]}"; do
  if [ "$number" -ge "$at_once" ]; then finish $((number - at_once)); fi
  say "cell ${cells[$number]}: on $name-$number, log in $name-$number.log"
  launch_cell "$number" "$@" >"$name-$number.log" 2>&1 &
  jobs[number]=$!
done
first=$((${#cells[@]} > at_once ? ${#cells[@]} - at_once : 0))
for ((number = first; number < ${#cells[@]}; number++)); do finish "$number"; done
[ ${#failed[@]} = 0 ] || die "${#failed[@]} of ${#cells[@]} cells failed: ${failed[*]}"
