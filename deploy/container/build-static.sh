#!/usr/bin/env bash
# Builds the release binary with glibc linked in, so that it runs where there is no file but itself, and checks that.
# Prints the path of the binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in *-linux-gnu) ;; *) echo "build-static.sh: the host $target is not a Linux with glibc" >&2; exit 1 ;; esac

# With --target, the flags go to the program and not to build scripts and macros, which cannot be static.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --release --locked --target "$target" >&2
binary=${CARGO_TARGET_DIR:-target}/$target/release/outrigger

described=$(file -b "$binary")
case $described in
    *"statically linked"* | *"static-pie linked"*) ;;
    *) echo "build-static.sh: not static: $described" >&2; exit 1 ;;
esac
if readelf -d "$binary" | grep -q NEEDED; then
    echo "build-static.sh: the binary needs shared libraries" >&2
    exit 1
fi
echo "$binary"
