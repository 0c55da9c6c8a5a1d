# shellcheck shell=bash
# Shared by the scripts in this folder, which source it: finds a Python, sees which accelerator the
# machine has, and keeps the environment .venv at the project root as setup.cfg asks for it.
# Works with the bash of macOS (3.2) too.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/jaxpretrain.stamp # what the environment was made for; absent: not made by these scripts
log=$venv/install.log
hardware= # the folder that holds /dev and /sys; the tests set another

# What launch/bundle.sh packed has its wheels with it, and says what they are for.
if [ -f "$root/wheels/bundle.sh" ]; then
  # shellcheck disable=SC1091
  . "$root/wheels/bundle.sh"
fi

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

usage_error() { # MESSAGE: for what the person who typed the command can put right
  say "error: $* (see launch/${0##*/} --help)"
  exit 2
}

die_with_log() { # MESSAGE
  tail -n 20 "$log" >&2
  die "$* (the whole log: $log)"
}

# Runs a command, or with --dry-run only prints it.
dry=
do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Prints a tar of the project as another machine needs it: no environment, no history, no runs.
pack_source() {
  tar -cf - -C "$root" --exclude=.venv --exclude=.git --exclude=runs --exclude=__pycache__ \
    --exclude=.pytest_cache --exclude=.ruff_cache --exclude='*.egg-info' --exclude=./wheels --exclude='./*.tar.gz' --exclude='./*.log' .
}

# ---------------------------------------------------------------------------------- devices

# Prints the extra of setup.cfg that this machine's accelerator needs: cuda12, cuda13 or tpu; or cpu.
detect_device() {
  local device=${JAXPRETRAIN_DEVICE-}
  case $device in
    cpu | cuda12 | cuda13 | tpu) ;;
    '')
      device=$(detect_nvidia)
      if [ "$device" = cpu ] && has_tpu; then device=tpu; fi
      ;;
    *) usage_error "JAXPRETRAIN_DEVICE is '$device', not cpu, cuda12, cuda13 or tpu" ;;
  esac
  printf '%s\n' "$device"
}

detect_nvidia() {
  local cuda oldest
  # nvidia-smi can be there without a GPU or without a driver that works: -L fails or lists nothing.
  case $(nvidia-smi -L 2>/dev/null) in
    *'GPU '[0-9]*) ;;
    *)
      echo cpu
      return
      ;;
  esac
  cuda=$(nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA ([A-Z]+ )?Version: *([0-9]+).*/\2/p' | head -n 1)
  if [ "${cuda:-0}" -lt 12 ]; then
    say "this NVIDIA driver supports CUDA ${cuda:-unknown}; JAX needs 12 or newer, so the CPU is used"
    echo cpu
    return
  fi
  # CUDA 13 has no code for GPUs older than Turing (compute capability 7.5), whatever the driver.
  oldest=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    sed -nE 's/^([0-9]+)\.([0-9]+).*/\1\2/p' | sort -n | head -n 1)
  if [ "$cuda" -ge 13 ] && [ "${oldest:-75}" -ge 75 ]; then echo cuda13; else echo cuda12; fi
}

# A device node alone does not make a TPU: other accelerators use /dev/accel* and any passed-through
# PCI device uses /dev/vfio. A TPU VM's environment or the chip's PCI number has to agree.
has_tpu() {
  local node nodes='' chip
  for node in "$hardware"/dev/accel[0-9]* "$hardware"/dev/vfio/[0-9]*; do
    [ ! -e "$node" ] || nodes=yes
  done
  [ -n "$nodes" ] || return 1
  [ -z "${TPU_NAME-}${TPU_ACCELERATOR_TYPE-}${TPU_WORKER_ID-}${TPU_WORKER_HOSTNAMES-}" ] || return 0
  for chip in "$hardware"/sys/bus/pci/devices/*; do
    [ -r "$chip/vendor" ] || continue
    case "$(cat "$chip/vendor" "$chip/device" | paste -sd ' ' -)" in # the numbers that JAX itself looks for
      '0x1ae0 0x0027' | '0x1ae0 0x0056' | '0x1ae0 0x005e' | '0x1ae0 0x0062' | '0x1ae0 0x0063' | \
        '0x1ae0 0x006f' | '0x1ae0 0x0076') return 0 ;;
    esac
  done
  return 1
}

# ----------------------------------------------------------------------------------- Python

is_usable() { # PYTHON
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() { # prints the interpreter to make the environment with
  local candidate last
  if [ -n "${PYTHON-}" ]; then
    is_usable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
    command -v "$PYTHON"
    return
  fi
  last=$(stamped python)
  for candidate in "$last" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && is_usable "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer found: install one, or set PYTHON=/path/to/python"
}

version_of() { # PYTHON: prints its minor version, as 3.12
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

identity() { # PYTHON: prints what two interpreters of one installation have in common
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.base_prefix)' 2>/dev/null || true
}

hash_of_metadata() { # PYTHON
  cat "$root/setup.cfg" "$root/pyproject.toml" |
    "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# ------------------------------------------------------------------------------ environment

stamped() { # KEY
  [ ! -f "$stamp" ] || sed -n "s/^$1 //p" "$stamp"
}

union() { # COMMA,SEPARATED COMMA,SEPARATED
  printf '%s,%s' "$1" "$2" | tr ',' '\n' | sed '/^$/d' | LC_ALL=C sort -u | paste -sd , -
}

# Makes .venv hold the package with DEVICE's JAX and the EXTRAS. Does nothing when it already does.
# Extras only ever grow; another Python or another kind of accelerator makes it anew.
ensure_env() { # DEVICE EXTRAS
  local device=$1 extras=$2 have wanted python kind other files started=$SECONDS
  [ "$device" = cpu ] || extras=$extras,$device # the CPU's JAX is part of every other one
  if [ -e "$venv" ] && [ ! -f "$stamp" ]; then
    die "$venv was not made by launch/*.sh: remove it, or install into it with: pip install -e ."
  fi

  have=$(identity "$venv/bin/python")
  wanted=$have
  if [ -n "${PYTHON-}" ]; then
    python=$(find_python) || exit
    wanted=$(identity "$python")
  fi
  other=
  for kind in cuda12 cuda13 tpu; do
    case ",$(stamped extras)," in
      *",$kind,"*) [ "$device" = cpu ] || [ "$device" = "$kind" ] || other=$kind ;;
    esac
  done
  if [ -z "$have" ] || [ "$have" != "$wanted" ] || [ "$have" != "$(stamped identity)" ] ||
    [ "$root" != "$(stamped root)" ] || [ -n "$other" ]; then
    make_env
  fi

  extras=$(union "$extras" "$(stamped extras)")
  files=$(hash_of_metadata "$venv/bin/python")
  if [ "$files" = "$(stamped files)" ] && [ "$extras" = "$(stamped extras)" ]; then
    return
  fi
  say "installing jaxpretrain${extras:+[$extras]} into $venv (minutes the first time)"
  # The hash is written when pip is done, so that an installation that was cut off is taken up again.
  write_stamp "$(stamped python)" "$extras" ''
  (cd "$root" && "$venv/bin/python" -m pip install -q --disable-pip-version-check \
    -e ".${extras:+[$extras]}") >>"$log" 2>&1 || die_with_log "pip could not install jaxpretrain"
  write_stamp "$(stamped python)" "$extras" "$files"
  say "installed in $((SECONDS - started)) s: $(versions)"
}

versions() {
  "$venv/bin/python" -c '
import platform
from importlib.metadata import version
names = ("jax", "flax", "optax", "orbax-checkpoint")
print(", ".join(["Python " + platform.python_version()] + [f"{n} {version(n)}" for n in names]))'
}

write_stamp() { # PYTHON EXTRAS FILES
  {
    echo "root $root"
    echo "python $1"
    echo "identity $(identity "$venv/bin/python")"
    echo "extras $2"
    echo "files $3"
  } >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

make_env() {
  local python
  python=$(find_python) || exit
  say "making $venv with $python"
  rm -rf "$venv"
  mkdir "$venv"
  echo "root $root" >"$stamp" # so that what is left of an interrupted run is known as ours
  if ! "$python" -m venv "$venv" >"$log" 2>&1; then
    install_venv_module "$python"
    "$python" -m venv "$venv" >>"$log" 2>&1 || die_with_log "$python could not make $venv"
  fi
  write_stamp "$python" '' ''
}

# Debian and Ubuntu ship python3 without what `python3 -m venv` needs, in a package of its own.
install_venv_module() { # PYTHON
  local package sudo=''
  case "$(identity "$1")" in
    *' /usr') ;;
    *) die_with_log "$1 could not make $venv" ;;
  esac
  if "$1" -c 'import ensurepip, venv' 2>/dev/null || ! command -v apt-get >/dev/null; then
    die_with_log "$1 could not make $venv"
  fi
  package=python$(identity "$1" | cut -d ' ' -f 1)-venv
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null ||
      die "$1 cannot make environments yet; run: sudo apt-get install $package"
    sudo='sudo -n'
  fi
  say "installing $package with apt-get"
  if ! install_with_apt "$sudo" "$package"; then
    $sudo apt-get update >>"$log" 2>&1 || true
    install_with_apt "$sudo" "$package" || die_with_log "apt-get could not install $package"
  fi
}

install_with_apt() { # SUDO PACKAGE
  $1 env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$2" >>"$log" 2>&1
}
