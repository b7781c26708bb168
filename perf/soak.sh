#!/usr/bin/env bash
# See README.md, or --help.
exec "$(dirname "$0")/run.sh" soak "$@"
