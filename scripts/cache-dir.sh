# The one place that says where things live which outlast a checkout. Sourced, never run.
#   DOWNRIVER_CACHE   venv and, unless CARGO_TARGET_DIR says otherwise, cargo's target folder
DOWNRIVER_CACHE=${DOWNRIVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/downriver}
export DOWNRIVER_CACHE
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$DOWNRIVER_CACHE/target}
