#!/usr/bin/env bash
# run.sh BENCHMARK [OPTION...]: run perf/BENCHMARK.py with a Python that has fastmtcp.
# PYTHON names another one than that of .venv, which ./scripts/demo and ./scripts/test make.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
for python in ${PYTHON:-.venv/bin/python python3}; do
  if "$python" -c 'import fastmtcp, click, psutil' 2> /dev/null; then
    exec "$python" -m "perf.$1" "${@:2}"
  fi
done
echo "$1.sh: error: no Python with fastmtcp was found; run ./scripts/demo once, or set PYTHON" >&2
exit 1
