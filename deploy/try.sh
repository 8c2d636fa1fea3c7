#!/usr/bin/env bash
# Tries what stands in deploy/: the systemd unit is verified, the compose files are checked, and the static binary is
# started as uid 1337 in an empty chroot, serves a request, and sets the kernel's rules.
# Usage: deploy/try.sh [STATIC-BINARY] (built when missing)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$("$here/container/build-static.sh" | tail -1)}
# The script prints a path that is seen from the repository; an argument is seen from where we are.
[ $# -gt 0 ] || binary=$(cd "$here/.." && readlink -f "$binary")
binary=$(readlink -f "$binary")
[ -x "$binary" ] || { echo "try.sh: ${1:-the binary} is not there" >&2; exit 1; }
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do
        { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT
ok() { echo "ok   deploy/$*"; }
fail() { echo "FAIL deploy/$*" >&2; exit 1; }
until_true() { # until_true SECONDS COMMAND…: polls
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

# 1. The unit, with the binary in the place that it names.
sed "s|/usr/local/bin/outrigger|$binary|" "$here/systemd/outrigger@.service" >"$work/outrigger@.service"
said=$(systemd-analyze verify "$work/outrigger@checkout.service" 2>&1 || echo "exit $?")
said=$(grep -v -e 'is marked executable' -e '/lib/systemd/system/' <<<"$said" || true)
[ -z "$said" ] || fail "systemd-verify: $said"
ok systemd-verify
systemd-analyze security --offline=yes --threshold=20 --no-pager "$work/outrigger@.service" >"$work/security" 2>&1 ||
    fail "systemd-security: $(tail -3 "$work/security")"
ok "systemd-security ($(grep -o "[0-9.]* OK" "$work/security" | head -1))"

# 2. The compose example's files are right.
for file in "$here"/compose/*/outrigger.yaml; do
    "$binary" check -c "$file" >"$work/check" 2>&1 || fail "compose-check $file: $(cat "$work/check")"
done
ok compose-check

# 3. The binary alone: a root with nothing in it but the program and its file.
ports=$(python3 -c '
import socket
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in taken))')
read -r app admin inbound outbound <<<"$ports"
root=$work/root
mkdir "$root"
cp "$binary" "$root/outrigger"
cat >"$root/outrigger.yaml" <<YAML
service: alone
grace: 2s
admin: 127.0.0.1:$admin
inbound: { listen: "127.0.0.1:$inbound", app: "127.0.0.1:$app" }
outbound: { listen: "127.0.0.1:$outbound" }
peers: { pages: { static: ["127.0.0.1:$app"] } }
YAML
chmod 755 "$work" "$root"
echo "from the app" >"$work/page"
(cd "$work" && exec python3 -m http.server "$app" --bind 127.0.0.1 >"$work/app.log" 2>&1) &
pids+=($!)
until_true 20 curl -sf "http://127.0.0.1:$app/page" || fail "chroot: the app did not start: $(cat "$work/app.log")"

enter=(chroot --userspec=1337:1337 "$root")
[ "$(id -u)" -eq 0 ] || enter=(unshare --user --map-root-user chroot "$root")
"${enter[@]}" /outrigger run -c /outrigger.yaml >"$work/sidecar.log" 2>&1 &
sidecar=$!
pids+=($sidecar)
until_true 20 curl -sf "http://127.0.0.1:$admin/ready" || fail "chroot: not ready: $(cat "$work/sidecar.log")"
for door in "$inbound" "$outbound"; do
    got=$(curl -sS --max-time 10 -H "Host: pages" "http://127.0.0.1:$door/page")
    [ "$got" = "from the app" ] || fail "chroot: answered '$got': $(cat "$work/sidecar.log")"
done
"${enter[@]}" /outrigger wait --admin "127.0.0.1:$admin" --timeout 5s || fail "chroot: wait"
ok "empty-chroot serves ($(du -h "$root/outrigger" | cut -f1), files: $(find "$root" -type f | wc -l))"

# 4. The kernel's rules are set from there too, in a network namespace of its own: no nft, no iptables, no shell.
cat >"$root/redirect.yaml" <<'YAML'
service: alone
inbound: { app: "127.0.0.1:8080" }
redirect: {}
YAML
namespace=(unshare --net)
[ "$(id -u)" -eq 0 ] || namespace=(unshare --user --map-root-user --net)
"${namespace[@]}" sh -e -c '
    chroot "$0" /outrigger redirect apply -c /redirect.yaml
    chroot "$0" /outrigger redirect show
    chroot "$0" /outrigger redirect remove' "$root" >"$work/redirect.log" 2>&1 ||
    fail "empty-chroot-redirect: $(cat "$work/redirect.log")"
grep -q "redirect to :15006" "$work/redirect.log" || fail "empty-chroot-redirect: $(cat "$work/redirect.log")"
ok empty-chroot-redirect

kill -TERM $sidecar
code=0
wait $sidecar || code=$?
[ $code -eq 0 ] || fail "chroot: ended with $code: $(cat "$work/sidecar.log")"
ok empty-chroot-ends
