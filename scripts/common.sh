# What scripts/demo and scripts/test share: finding Python, making a venv, fetching Debian packages.
# To be sourced, with the current directory at the top of the repository.

export PIP_DISABLE_PIP_VERSION_CHECK=1
# Where ip, nft and sshd are; not in every user's PATH.
PATH=$PATH:/usr/sbin:/sbin
say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# python_runs COMMAND MAJOR.MINOR: it is there, starts (a pyenv shim may not) and is new enough.
python_runs() {
  "$1" -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$2'.split('.'))))" \
    > /dev/null 2>&1
}

# find_python: print a Python >= 3.11, preferably 3.11.
find_python() {
  local name
  for name in python3.11 /usr/bin/python3.11 python3 python3.12 python3.13 python3.14; do
    if python_runs "$name" 3.11; then command -v "$name"; return; fi
  done
  die 'no Python 3.11 or newer was found; install it (Debian 12: apt-get install python3)'
}

# make_venv DIR PYTHON EXTRAS: a venv with fastmtcp and its extras ('' or '[test]') installed from
# this tree; one that is up to date is left as it is.
make_venv() {
  local dir=$1 python=$2 extras=$3 stamp
  stamp=$({ pwd; "$python" -VV; cat setup.cfg pyproject.toml; } | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$dir/stamp" 2> /dev/null)" = "$stamp$extras" ] ||
    [ "$(cat "$dir/stamp" 2> /dev/null)" = "$stamp[test]" ]; then
    "$dir/bin/python" -c 'import fastmtcp' 2> /dev/null && return
  fi
  say "installing into $dir ($("$python" -V))"
  mkdir -p "$dir"
  rm -rf "$dir"/{bin,include,lib,lib64,share,pyvenv.cfg,stamp}
  if "$python" -c 'import ensurepip' 2> /dev/null; then
    "$python" -m venv "$dir"
  else
    # Debian without python3-venv. Its wheel of pip can install itself.
    local wheel
    fetch_debs .venv/pip-debs python3-pip-whl
    wheel=$(ls .venv/pip-debs/usr/share/python-wheels/pip-*.whl) || die 'no wheel of pip found'
    "$python" -m venv --without-pip "$dir"
    "$dir/bin/python" "$wheel/pip" install --quiet pip
  fi
  local output
  if ! output=$("$dir/bin/python" -m pip install --quiet --editable ".$extras" 2>&1); then
    printf '%s\n' "$output" >&2
    die "pip could not install fastmtcp$extras into $dir"
  fi
  printf '%s\n' "$stamp$extras" > "$dir/stamp"
}

# fetch_debs DIR PACKAGE...: unpack packages, and what they need that is not installed, below DIR.
# Changes nothing on the machine and needs no root.
fetch_debs() {
  local dir=$1 missing deb
  shift
  command -v apt-get > /dev/null || die "this system has no apt-get; install by hand: $*"
  mkdir -p "$dir"/apt/{lists/partial,archives/partial} "$dir/files"
  local apt=(apt-get -qq -o "Dir::State::lists=$PWD/$dir/apt/lists" -o "Dir::Cache=$PWD/$dir/apt"
    -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un)")
  "${apt[@]}" update || say 'apt-get update failed; going on with what it knows'
  missing=$("${apt[@]}" --simulate --no-install-recommends install "$@" | awk '/^Inst/ {print $2}')
  # shellcheck disable=SC2086 # one word for each package
  (cd "$dir/files" && "${apt[@]}" download $missing) || die "cannot download: $missing"
  for deb in "$dir"/files/*.deb; do dpkg-deb --extract "$deb" "$dir"; done
  rm -rf "$dir/apt" "$dir/files"
}
