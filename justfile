# `just check` before every push; `just` lists the rest.

default:
    @just --list

# what CI runs first: formatting, lints, documentation, tests
check:
    cargo fmt --check
    cargo clippy --locked --all-targets --quiet -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
    cargo test --locked

# bans, licences and sources of all dependencies
deny:
    cargo deny --offline check bans licenses sources

# real software through two sidecars; NAME picks cases
clients NAME="":
    tests/clients/install.sh
    cargo build --release --locked
    tests/clients/run {{ if NAME == "" { "" } else { "--only " + NAME } }}

# the same cases without sidecars: proves the suite itself
clients-direct:
    tests/clients/install.sh
    tests/clients/run --direct

# the kernel's rules, in network namespaces of their own; NAME picks cases
capture NAME="":
    cargo build --release --locked
    tests/capture/run {{ if NAME == "" { "" } else { "--only " + NAME } }}

# the unit, the compose files, the static binary in an empty chroot
deploy:
    deploy/try.sh

# one hop beside the relay, nginx and HAProxy
bench:
    cargo build --release --locked
    benches/one_hop.py

# all that CI runs
ci:
    .ci/run
