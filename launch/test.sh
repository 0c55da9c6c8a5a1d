#!/usr/bin/env bash
# Runs the tests, making the environment first if needed.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
  cat <<'TEXT'
usage: launch/test.sh [PYTEST ARGUMENTS]

Makes the environment .venv at the project root as launch/local.sh does, with the extra `test`, and
runs `python -m pytest` there with the arguments. Paths are relative to the project root.

  launch/test.sh                              everything, one worker per core and four at most
  launch/test.sh tests/data -k tokenizer      a part
  launch/test.sh -n 0 --pdb tests/data        in one process, with the debugger

environment variables:
  PYTHON                       the interpreter to use (3.11 or newer)
  JAX_PLATFORMS                what to test on (default: cpu; `cuda` and `tpu` install that JAX)
  JAX_COMPILATION_CACHE_DIR    where compiled programs are kept between runs
TEXT
}

parallel=yes
for argument; do
  case $argument in
    -h | --help)
      usage
      exit
      ;;
    -n* | --numprocesses* | --pdb | --trace | *no:xdist) parallel= ;;
  esac
done

export JAX_PLATFORMS=${JAX_PLATFORMS-cpu}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/jaxpretrain/jax
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS-0.2}

device=cpu
if [ "$JAX_PLATFORMS" != cpu ]; then device=$(detect_device); fi
ensure_env "$device" test

if [ -n "$parallel" ]; then
  workers=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  # In the order of tests/conftest.py, where pytest-xdist would begin the files of most tests first.
  set -- -n "$((workers < 4 ? workers : 4))" --dist loadfile --no-loadscope-reorder "$@"
fi
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
