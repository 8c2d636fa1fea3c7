#!/bin/sh
set -eu
clear() { # clear PROGRAM TABLE
    for chain in outrigger-outbound outrigger-inbound outrigger-back outrigger-guard-out outrigger-guard-in; do
        for hook in PREROUTING INPUT OUTPUT; do
            while "$1" -w -t "$2" -D "$hook" -j "$chain" 2>/dev/null; do :; done
        done
    done
    chains=$("$1" -w -t "$2" -S | sed -n 's/^-N \(outrigger-.*\)$/\1/p')
    for chain in $chains; do "$1" -w -t "$2" -F "$chain"; done
    for chain in $chains; do "$1" -w -t "$2" -X "$chain"; done
}
clear iptables nat
clear iptables mangle
clear iptables filter
clear ip6tables nat
clear ip6tables mangle
clear ip6tables filter
ip rule flush protocol 156
ip route flush table all proto 156
ip -6 rule flush protocol 156
ip -6 route flush table all proto 156
