#!/usr/bin/env bash
# Builds the release binary with glibc linked in, so that it runs where there is no file but itself, and checks that.
# Prints the path of the binary.
#   --guided  builds it twice (profile-guided optimization): what the first one counts of itself under the benches and
#             the client suite lays out the second, which takes about a fifth less user time. Needs what
#             tests/clients/install.sh installs, and takes some ten minutes more.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../.."
usage() { echo "build-static.sh: $1; usage: build-static.sh [--guided]" >&2; exit 2; }
case "$#$*" in 0 | 1--guided) ;; *) usage "unknown: $*" ;; esac
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in *-linux-gnu) ;; *) echo "build-static.sh: the host $target is not a Linux with glibc" >&2; exit 1 ;; esac
folder=${CARGO_TARGET_DIR:-target}

build() { # build FOLDER [FLAG...]: prints the path of the binary
    local to=$1 flags
    shift
    # With --target, the flags go to the program and not to build scripts and macros, which cannot be static.
    read -ra flags <<<"${RUSTFLAGS:-}"
    flags+=(-C target-feature=+crt-static "$@")
    # Encoded, because a path among them may have a blank.
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}") \
        cargo build --release --locked --target "$target" --target-dir "$to" >&2
    echo "$to/$target/release/outrigger"
}

merger() { # prints the path of an llvm-profdata: rustc's own, or else the newest of Debian's
    local own newest
    own=$(rustc --print sysroot)/lib/rustlib/$target/bin/llvm-profdata
    newest=$(printf '%s\n' /usr/lib/llvm-*/bin/llvm-profdata | sort -V | tail -1)
    if [ -x "$own" ]; then
        echo "$own"
    elif [[ $newest =~ llvm-([0-9]+)/ ]] && [ "${BASH_REMATCH[1]}" -ge 19 ]; then
        echo "$newest"
    else
        echo "build-static.sh: --guided needs llvm-profdata of LLVM 19 or later:" \
            "rustup component add llvm-tools, or apt-get install llvm-19" >&2
        exit 1
    fi
}

often() { # often BINARY: what is to be fast
    benches/one_hop.py --binary "$1" --only outrigger --rounds 1 --seconds 3 --smoke
    benches/one_hop.py --binary "$1" --only outrigger --rounds 1 --seconds 3 --smoke --http2
    benches/mtls_pair.py --binary "$1" --only http1 --only http2 --only handshakes --rounds 1 --seconds 3 \
        --handshakes 300 --smoke
}

once() { # once BINARY: everything else, which is not to be taken for what is never done
    # What a program that counts is too slow for has been done all the same.
    tests/clients/run --binary "$1" --quiet || echo "build-static.sh: not all of the training succeeded" >&2
}

profile() { # prints the path of a profile of this very program
    local merge counting counts profile
    merge=$(merger)
    counts=$(realpath -m "$folder/guided/counts")
    counting=$(build "$folder/guided" -C "profile-generate=$counts")
    # As long as the program is the same its profile is, and cargo has nothing to build again.
    profile=$(realpath "$folder/guided")/$(sha256sum "$counting" | cut -c -16).profdata
    if [ ! -s "$profile" ]; then
        rm -rf "$counts"
        mkdir -p "$counts"
        # Four files each that processes add up in as they end, however many there are.
        LLVM_PROFILE_FILE=$counts/often-%4m.profraw often "$counting" >&2
        LLVM_PROFILE_FILE=$counts/once-%4m.profraw once "$counting" >&2
        "$merge" merge -o "$counts/often" "$counts"/often-*.profraw >&2
        "$merge" merge -o "$counts/once" "$counts"/once-*.profraw >&2
        # Those of other programs are of no use any more.
        rm -f "${profile%/*}"/*.profdata
        # A suite that moves gigabytes must not outweigh the requests of a few seconds.
        "$merge" merge -o "$profile.new" --weighted-input="50,$counts/often" --weighted-input="1,$counts/once" >&2
        mv "$profile.new" "$profile"
        rm -rf "$counts"
    fi
    echo "$profile"
}

flags=()
if [ "${1:-}" = --guided ]; then
    profile=$(profile)
    flags=(-C "profile-use=$profile")
fi
binary=$(build "$folder" "${flags[@]}")

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
