#!/usr/bin/env bash
# Installs the real software that the suites need: Debian packages (as root), a Python venv, npm packages.
# Safe to run again: what is there is left alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

packages=()
need() { # need PACKAGE COMMAND: PACKAGE is wanted unless COMMAND can be run
    command -v "$2" >/dev/null || [ -x "$2" ] || packages+=("$1")
}
need curl curl
need openssl openssl
need nginx-light /usr/sbin/nginx
need haproxy /usr/sbin/haproxy
need redis-server redis-server
need mariadb-server-core /usr/sbin/mariadbd
need mariadb-client-core /usr/bin/mariadb
need dnsmasq-base /usr/sbin/dnsmasq
need bind9-dnsutils dig
need wrk wrk
need nghttp2-client h2load
need nodejs node
need iproute2 ip
need util-linux nsenter
need nftables /usr/sbin/nft
need redis-tools redis-cli
need nats-server /usr/sbin/nats-server
need iptables /usr/sbin/iptables
need strace strace
need systemd systemd-analyze
need file file
# For a build that is guided by a profile, unless rustc brings its own.
ls "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata >/dev/null 2>&1 || need llvm-19 /usr/lib/llvm-19/bin/llvm-profdata
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages+=(postgresql)
ls /usr/lib/postgresql/*/bin/psql >/dev/null 2>&1 || packages+=(postgresql-client)
command -v npm >/dev/null || packages+=(npm)
python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3-venv)

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "install.sh: these Debian packages are missing and only root can install them: ${packages[*]}" >&2
        exit 1
    fi
    echo "install.sh: apt-get install ${packages[*]}"
    # The suite starts its own servers with its own files; none of the packages' services is to be started.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

stamp=$here/.venv/requirements.txt
if ! cmp -s "$here/requirements.txt" "$stamp"; then
    python3 -m venv "$here/.venv"
    "$here/.venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$stamp"
fi
if ! cmp -s "$here/package.json" "$here/node_modules/.package.json"; then
    (cd "$here" && npm install --silent --no-audit --no-fund --no-package-lock >/dev/null)
    cp "$here/package.json" "$here/node_modules/.package.json"
fi
echo "install.sh: everything is there"
