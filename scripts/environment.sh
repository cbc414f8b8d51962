# Sourced by scripts/train and scripts/test. `prepare train` or `prepare test` makes sure that $root/.venv holds what
# that command needs, at the versions of constraints.txt, and sets $python. Nothing is installed a second time unless
# the requirements (or the place of this checkout) changed; an interrupted installation is noticed and begun again.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"
state="$venv/.ndeflow" # "installing", or the fingerprint and the levels of what is installed; absent: not our folder

say() { echo "ndeflow: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# The first suitable Python, in $base.
find_python() {
    local candidate version seen="" bare=""
    local candidates=(python3 python3.13 python3.12 python3.11 python)
    [ -z "${NDEFLOW_PYTHON:-}" ] || candidates=("$NDEFLOW_PYTHON")
    for candidate in "${candidates[@]}"; do
        version="$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
        case "$version" in
        3.11 | 3.12 | 3.13) ;;
        *)
            seen="${seen:+$seen, }$candidate is $version"
            continue
            ;;
        esac
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            base="$candidate"
            return
        fi
        bare="$version"
    done
    [ -z "$bare" ] || fail "Python $bare lacks its venv module; install it (Debian, Ubuntu: apt install python$bare-venv) and run this again."
    fail "expected Python 3.11, 3.12 or 3.13, found ${seen:-none}; install one, or name it: NDEFLOW_PYTHON=/path/to/python3.12 $0"
}

# Requirements as text: what an installation depends on, and nothing that may change without one.
fingerprint() {
    { sed '/^\[tool\./,$d' "$root/pyproject.toml"; cat "$root/scripts/constraints.txt"; echo "$root"; } | cksum | tr -d ' '
}

create() {
    find_python
    say "creating $venv with Python $("$base" -c 'import platform; print(platform.python_version())') (first use)"
    rm -rf "$venv"
    mkdir "$venv"
    echo installing >"$state"
    "$base" -m venv "$venv" >"$venv/install.log" 2>&1 || fail "could not create $venv: $(tail -n 1 "$venv/install.log")"
}

# pip with the pinned versions; shows what it downloads, keeps the rest in install.log.
pip_install() {
    local log="$venv/install.log"
    "$python" -m pip install --disable-pip-version-check --progress-bar off --no-input -c "$root/scripts/constraints.txt" "$@" 2>&1 |
        tee -a "$log" | progress ||
        fail "pip could not install the requirements: $(grep '^ERROR' "$log" | tail -n 1) (all of it: $log)"
}

progress() {
    local line
    while IFS= read -r line; do
        case "$line" in
        *Downloading\ *MB\) | *Using\ cached\ *MB\)) echo "  ${line#"${line%%[![:space:]]*}"}" >&2 ;;
        Installing*) echo "  Installing" >&2 ;;
        esac
    done
}

# prepare LEVEL: "train" what training needs, "test" the tests' tools besides.
prepare() {
    local level="$1" extras="data" known=""
    [ "$level" = train ] || extras="test"
    # Two first runs at once: the second waits.
    exec 9>"$root/.venv.lock" || fail "cannot write to $root; make it writable, or copy it elsewhere."
    if command -v flock >/dev/null && ! flock -n 9; then
        say "waiting for another set-up of $venv"
        flock 9
    fi
    if [ -e "$venv" ]; then
        [ -f "$state" ] || fail "$venv exists but was not made by this script; move it away and run this again."
        known="$(cat "$state")"
    fi
    if [[ "$known" == "$(fingerprint):"*" $level"* ]] && "$python" -c "" 2>/dev/null; then
        exec 9>&-
        return
    fi
    if [ -z "$known" ] || [ "$known" = installing ] || ! "$python" -c "" 2>/dev/null; then create; fi
    say "installing what $level needs (a few minutes the first time, most of it PyTorch)"
    echo installing >"$state"
    pip_install -e "$root[$extras]"
    pip_install --no-deps aeon==1.6.0 arch==8.0.0 # for their data; their code, and what that requires, is not used
    if [ "$level" = train ]; then known="train"; else known="train test"; fi
    echo "$(fingerprint): $known" >"$state"
    say "ready: $venv"
    exec 9>&-
}
