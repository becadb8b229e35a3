#!/usr/bin/env bash
# Puts a pinned stack into .venv, or finds it there. `make` calls this; it may be interrupted and repeated.
#
#   VENV=.venv   STACK=openmmlab|onedl (by default from the Python found)   PYTHON=a python to use   MAX_JOBS=cores
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV=${VENV:-.venv}
STACK=${STACK:-}
NEED_GB=12 # .venv alone came to 5.5 GB; pip's downloads, its cache and mmcv's build take as much again
NEED_GCC=7
LOG=$VENV/setup.log

fail() {
    echo "setup: $*" >&2
    exit 1
}

case $STACK in '' | openmmlab | onedl) ;; *) fail "STACK: expected 'openmmlab' or 'onedl', found '$STACK'" ;; esac

# ---- which Python, which stack ----------------------------------------------------------------------------------

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; } # runs it: a pyenv shim may lie

can_build() { # has it venv, and the headers that mmcv's extension includes?
    "$1" -c 'import ensurepip, os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null
}

stack_for() { # Python's version -> the stack it can serve, given what STACK asks
    case $STACK:$1 in
        openmmlab:3.10 | openmmlab:3.11 | :3.10 | :3.11) echo openmmlab ;;
        onedl:3.10 | onedl:3.11 | onedl:3.12 | :3.12) echo onedl ;;
        *) return 1 ;;
    esac
}

choose_python() { # sets PY and STACK
    local name version stack tried=
    for name in ${PYTHON:-python3.11 python3.10 python3 python python3.12}; do
        version=$(version_of "$name") || continue
        if ! stack=$(stack_for "$version"); then
            tried+="; $name is $version"
        elif ! can_build "$name"; then
            tried+="; $name ($version) lacks venv or Python.h: install python$version-venv and python$version-dev"
        else
            PY=$name STACK=$stack
            return
        fi
    done
    local need='3.10, 3.11 or 3.12'
    [ "$STACK" = openmmlab ] && need='3.10 or 3.11'
    fail "expected Python $need with venv and headers, found none that serves${tried:-; no python runs}"
}

stack_in_venv() {
    if compgen -G "$VENV/lib/python*/site-packages/onedl_mm*.dist-info" >/dev/null; then
        echo onedl
    elif compgen -G "$VENV/lib/python*/site-packages/mm*.dist-info" >/dev/null; then
        echo openmmlab
    fi
}

adopt_venv() { # sets PY and STACK from a .venv that works
    local there version
    there=$(stack_in_venv)
    if [ -n "$there" ] && [ "${STACK:-$there}" != "$there" ]; then
        fail "$VENV holds the $there stack, and both cannot share it: use VENV=$VENV-$STACK, or remove $VENV"
    fi
    STACK=${STACK:-$there}
    PY=$VENV/bin/python
    version=$(version_of "$PY")
    STACK=$(stack_for "$version") || fail "$VENV has Python $version, which cannot serve ${STACK:-any stack}: remove $VENV"
}

# ---- can this machine serve -------------------------------------------------------------------------------------

check_compiler() {
    local version
    version=$("${CXX:-g++}" -dumpversion 2>/dev/null) || fail "mmcv is built from source and expected ${CXX:-g++}, found none: install gcc and g++"
    "${CC:-gcc}" --version >/dev/null 2>&1 || fail "mmcv is built from source and expected ${CC:-gcc}, found none: install gcc and g++"
    [ "${version%%.*}" -ge $NEED_GCC ] || fail "mmcv needs g++ >= $NEED_GCC (C++17), found $version"
}

check_disk() {
    local free used=0
    free=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ ! -d "$VENV" ] || used=$(du -sk "$VENV" | awk '{ print int($1 / 1048576) }')
    [ $((free + used)) -ge $NEED_GB ] || fail "expected $NEED_GB GB of free disk for $VENV, found $free GB"
}

# ---- the work ---------------------------------------------------------------------------------------------------

clock() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

progress() { # ninja's counter where something is being compiled, else pip's last line
    tail -n 60 "$LOG" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1 || tail -n 1 "$LOG" | cut -c 1-100
}

step() { # step LABEL COMMAND...: output to the log; a line now, one every 30 s, and the log's tail if it fails
    local label=$1 pid next=$((SECONDS + 30))
    shift
    echo "[$(clock)] $label"
    echo "==== $label: $*" >>"$LOG"
    set -m # a process group of its own, so that Ctrl-C can end pip and the compilers below it
    "$@" >>"$LOG" 2>&1 &
    pid=$!
    set +m
    trap 'kill -- -$pid 2>/dev/null; exit 130' INT TERM
    while kill -0 $pid 2>/dev/null; do
        sleep 0.5
        if [ $SECONDS -ge $next ]; then
            echo "[$(clock)]   ... $(progress)"
            next=$((SECONDS + 30))
        fi
    done
    trap - INT TERM
    wait $pid || {
        tail -n 25 "$LOG" >&2
        fail "'$label' failed; its whole output is in $LOG"
    }
}

missing() { "$PY" tools/dev/missing.py "$@"; } # prints the requirements that are not met; fails if there are any

install() { "$PY" -m pip install --progress-bar off --constraint "$PINS" "$@"; }

build_mmcv() { # with the ops that mmdet imports
    local jobs
    jobs=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    # With a GPU but no nvcc mmcv's setup.py stops; the CPU ops then do, and the networks still run on the GPU.
    if [ -z "${CUDA_HOME:-}" ] && ! command -v nvcc >/dev/null; then export CUDA_VISIBLE_DEVICES=; fi
    local flags # Python's own, without the debug information they ask for, which takes half of the time
    flags="$("$PY" -c 'import sysconfig; print(sysconfig.get_config_var("CFLAGS"))') -g0"
    export CFLAGS="$flags ${CFLAGS:-}" CXXFLAGS="$flags ${CXXFLAGS:-}"
    MMCV_WITH_OPS=1 MAX_JOBS=$jobs PATH=$(cd "$VENV/bin" && pwd):$PATH install -v --no-build-isolation "$(grep -E '^(onedl-)?mmcv==' "$PINS")"
}

link_mmsokd() { # as `setup.py develop` did: mim finds no package that an editable install by PEP 660 placed
    "$PY" setup.py --quiet egg_info link_mim
    pwd >"$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmsokd.pth"
}

if version_of "$VENV/bin/python" >/dev/null && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    adopt_venv
else
    choose_python
fi
PINS=requirements/stack-$STACK.txt
STAMP=$VENV/.mmsokd-stack
REST=(requirements/{runtime,tests,lint,docs}.txt) # what mmsokd itself needs, and the tools
KEY="$STACK $(version_of "$PY") $(cat "$PINS" "${REST[@]}" | cksum) $PWD"
if [ "$(cat "$STAMP" 2>/dev/null)" = "$KEY" ]; then exit 0; fi

if [ "$PY" != "$VENV/bin/python" ]; then
    check_compiler
    check_disk
    "$PY" -m venv --clear "$VENV"
    PY=$VENV/bin/python
fi
echo "setup: $STACK stack, Python $(version_of "$PY"), in $VENV; the first time takes 10 to 25 minutes; log: $LOG"
if ! missing "$PINS" >/dev/null; then
    check_disk
    grep mmcv "$PINS" | missing /dev/stdin >/dev/null || check_compiler
    rest=$VENV/stack-without-mmcv.txt
    grep -vE '^(onedl-)?mmcv==' "$PINS" >"$rest"
    missing "$rest" >/dev/null || step 'PyTorch and the OpenMMLab libraries (about 3 GB)' install -r "$rest"
    missing "$PINS" >/dev/null || step 'mmcv and its ops, from source (about 9 minutes on 2 cores)' build_mmcv
fi
missing "${REST[@]}" >/dev/null || step 'tools for tests, lint and docs' install "${REST[@]/#/--requirement=}"
step 'mmsokd itself' link_mmsokd
missing "$PINS" "${REST[@]}" >&2 || fail "the lines above are still not met; remove $VENV and try again"
echo "$KEY" >"$STAMP"
echo "[$(clock)] ready: $VENV"
