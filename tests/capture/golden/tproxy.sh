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
ip route add local default dev lo table 1337 proto 156
ip rule add fwmark 0x539 lookup 1337 pref 1337 protocol 156
ip -6 route add local default dev lo table 1337 proto 156
ip -6 rule add fwmark 0x539 lookup 1337 pref 1337 protocol 156
iptables-restore -w --noflush <<'END'
*nat
:outrigger-outbound - [0:0]
:outrigger-out - [0:0]
:outrigger-own - [0:0]
:outrigger-self - [0:0]
-A outrigger-outbound -m owner --uid-owner 1337 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -p udp --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -p tcp --syn --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-outbound -p tcp --syn -m comment --comment "new connections" -g outrigger-out
-A outrigger-out -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 15001
-A outrigger-own -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-own -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j RETURN
-A outrigger-own -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "the service calls itself" -g outrigger-self
-A outrigger-self -p tcp --dport 15006:15006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-self -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 15006
-I OUTPUT 1 -j outrigger-outbound
COMMIT
END
iptables-restore -w --noflush <<'END'
*mangle
:outrigger-inbound - [0:0]
:outrigger-in - [0:0]
:outrigger-back - [0:0]
-A outrigger-inbound -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-inbound -p tcp ! --syn -m socket --transparent -m comment --comment "connections that the sidecar has" -j MARK --set-mark 0x539
-A outrigger-inbound -p tcp ! --syn -m socket --transparent -m comment --comment "connections that the sidecar has" -j RETURN
-A outrigger-inbound -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "new connections to this machine" -g outrigger-in
-A outrigger-inbound -p tcp -m conntrack --ctdir ORIGINAL -m addrtype --dst-type LOCAL -m comment --comment "connections to this machine" -g outrigger-in
-A outrigger-in -p tcp --dport 15006:15006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-in -p tcp -m comment --comment "to the door" -j TPROXY --on-port 15006 --tproxy-mark 0x539
-A outrigger-in -p tcp --syn -m comment --comment "nobody at the door" -j DROP
-A outrigger-back -m owner --uid-owner 1337 -p tcp -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j CONNMARK --set-mark 0x539
-A outrigger-back -m conntrack --ctdir REPLY -m connmark --mark 0x539 -m comment --comment "the app answers" -j MARK --set-mark 0x539
-I PREROUTING 1 -j outrigger-inbound
-I OUTPUT 1 -j outrigger-back
COMMIT
END
iptables-restore -w --noflush <<'END'
*filter
:outrigger-guard-out - [0:0]
:outrigger-not-out - [0:0]
-A outrigger-guard-out -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-out -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 1337 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-guard-out -p tcp -m comment --comment "not sent to the door" -g outrigger-not-out
-A outrigger-not-out -p tcp -m comment --comment "was to go to the outbound door" -j DROP
-I OUTPUT 1 -j outrigger-guard-out
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*nat
:outrigger-outbound - [0:0]
:outrigger-out - [0:0]
:outrigger-own - [0:0]
:outrigger-self - [0:0]
-A outrigger-outbound -m owner --uid-owner 1337 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -d fe80::/10 -m comment --comment "link-local" -j RETURN
-A outrigger-outbound -p udp --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -p tcp --syn --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-outbound -p tcp --syn -m comment --comment "new connections" -g outrigger-out
-A outrigger-out -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 15001
-A outrigger-own -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-own -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j RETURN
-A outrigger-own -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "the service calls itself" -g outrigger-self
-A outrigger-self -p tcp --dport 15006:15006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-self -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 15006
-I OUTPUT 1 -j outrigger-outbound
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*mangle
:outrigger-inbound - [0:0]
:outrigger-in - [0:0]
:outrigger-back - [0:0]
-A outrigger-inbound -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-inbound -p tcp ! --syn -m socket --transparent -m comment --comment "connections that the sidecar has" -j MARK --set-mark 0x539
-A outrigger-inbound -p tcp ! --syn -m socket --transparent -m comment --comment "connections that the sidecar has" -j RETURN
-A outrigger-inbound -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "new connections to this machine" -g outrigger-in
-A outrigger-inbound -p tcp -m conntrack --ctdir ORIGINAL -m addrtype --dst-type LOCAL -m comment --comment "connections to this machine" -g outrigger-in
-A outrigger-in -p tcp --dport 15006:15006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-in -p tcp -m comment --comment "to the door" -j TPROXY --on-port 15006 --tproxy-mark 0x539
-A outrigger-in -p tcp --syn -m comment --comment "nobody at the door" -j DROP
-A outrigger-back -m owner --uid-owner 1337 -p tcp -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j CONNMARK --set-mark 0x539
-A outrigger-back -m conntrack --ctdir REPLY -m connmark --mark 0x539 -m comment --comment "the app answers" -j MARK --set-mark 0x539
-I PREROUTING 1 -j outrigger-inbound
-I OUTPUT 1 -j outrigger-back
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*filter
:outrigger-guard-out - [0:0]
:outrigger-not-out - [0:0]
-A outrigger-guard-out -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-out -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 1337 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -d fe80::/10 -m comment --comment "link-local" -j RETURN
-A outrigger-guard-out -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-guard-out -p tcp -m comment --comment "not sent to the door" -g outrigger-not-out
-A outrigger-not-out -p tcp -m comment --comment "was to go to the outbound door" -j DROP
-I OUTPUT 1 -j outrigger-guard-out
COMMIT
END
