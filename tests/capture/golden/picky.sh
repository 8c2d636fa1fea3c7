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
iptables-restore -w --noflush <<'END'
*nat
:outrigger-outbound - [0:0]
:outrigger-out - [0:0]
:outrigger-out-interfaces - [0:0]
:outrigger-out-uids - [0:0]
:outrigger-out-ports - [0:0]
:outrigger-out-networks - [0:0]
:outrigger-own - [0:0]
:outrigger-self - [0:0]
:outrigger-self-ports - [0:0]
:outrigger-self-networks - [0:0]
:outrigger-inbound - [0:0]
:outrigger-in - [0:0]
:outrigger-in-interfaces - [0:0]
:outrigger-in-ports - [0:0]
:outrigger-in-networks - [0:0]
-A outrigger-outbound -m owner --uid-owner 2102 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -m owner --gid-owner 2103 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -m owner --uid-owner 0 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-outbound -m owner --uid-owner 101 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-outbound -d 127.0.0.11/32 -p udp --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d 127.0.0.11/32 -p tcp --syn --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-outbound -p tcp --syn -m comment --comment "new connections" -g outrigger-out
-A outrigger-out -o docker+ -m comment --comment "outbound.except.interfaces" -j RETURN
-A outrigger-out -p tcp --dport 22:22 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-out -p tcp --dport 3306:3307 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-out -d 10.0.0.0/9 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-out -d 10.200.0.7/32 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-out -o eth0 -m comment --comment "outbound.only.interfaces" -g outrigger-out-interfaces
-A outrigger-out-interfaces -m owner --uid-owner 1000 -m comment --comment "outbound.only.uids" -g outrigger-out-uids
-A outrigger-out-uids -p tcp --dport 80:80 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-uids -p tcp --dport 443:443 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-uids -p tcp --dport 8000:8999 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-ports -d 10.0.0.0/8 -m comment --comment "outbound.only.networks" -g outrigger-out-networks
-A outrigger-out-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 16001
-A outrigger-own -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-own -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j RETURN
-A outrigger-own -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "the service calls itself" -g outrigger-self
-A outrigger-self -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-self -s 192.168.7.7/32 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-self -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-self-ports
-A outrigger-self-ports -m comment --comment "inbound.only.networks" -g outrigger-self-networks
-A outrigger-self-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 16006
-A outrigger-inbound -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-inbound -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "new connections to this machine" -g outrigger-in
-A outrigger-in -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -i tun0 -m comment --comment "inbound.except.interfaces" -j RETURN
-A outrigger-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-in -s 192.168.7.7/32 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-in -i eth0 -m comment --comment "inbound.only.interfaces" -g outrigger-in-interfaces
-A outrigger-in -i veth+ -m comment --comment "inbound.only.interfaces" -g outrigger-in-interfaces
-A outrigger-in-interfaces -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-in-ports
-A outrigger-in-ports -m comment --comment "inbound.only.networks" -g outrigger-in-networks
-A outrigger-in-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 16006
-I OUTPUT 1 -j outrigger-outbound
-I PREROUTING 1 -j outrigger-inbound
COMMIT
END
iptables-restore -w --noflush <<'END'
*mangle
:outrigger-guard-in - [0:0]
:outrigger-not-in - [0:0]
:outrigger-not-in-interfaces - [0:0]
:outrigger-not-in-ports - [0:0]
:outrigger-not-in-networks - [0:0]
-A outrigger-guard-in -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-in -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-guard-in -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-in -p tcp -m addrtype --dst-type LOCAL -m comment --comment "not sent to the door" -g outrigger-not-in
-A outrigger-not-in -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -i tun0 -m comment --comment "inbound.except.interfaces" -j RETURN
-A outrigger-not-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-not-in -s 192.168.7.7/32 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-not-in -i eth0 -m comment --comment "inbound.only.interfaces" -g outrigger-not-in-interfaces
-A outrigger-not-in -i veth+ -m comment --comment "inbound.only.interfaces" -g outrigger-not-in-interfaces
-A outrigger-not-in-interfaces -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-not-in-ports
-A outrigger-not-in-ports -m comment --comment "inbound.only.networks" -g outrigger-not-in-networks
-A outrigger-not-in-networks -p tcp -m comment --comment "was to go to the inbound door" -j DROP
-I INPUT 1 -j outrigger-guard-in
COMMIT
END
iptables-restore -w --noflush <<'END'
*filter
:outrigger-guard-out - [0:0]
:outrigger-not-out - [0:0]
:outrigger-not-out-interfaces - [0:0]
:outrigger-not-out-uids - [0:0]
:outrigger-not-out-ports - [0:0]
:outrigger-not-out-networks - [0:0]
-A outrigger-guard-out -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-out -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 2102 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -m owner --gid-owner 2103 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 0 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 101 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-guard-out -d 127.0.0.0/8 -m comment --comment "loopback" -j RETURN
-A outrigger-guard-out -p tcp -m comment --comment "not sent to the door" -g outrigger-not-out
-A outrigger-not-out -o docker+ -m comment --comment "outbound.except.interfaces" -j RETURN
-A outrigger-not-out -p tcp --dport 22:22 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-not-out -p tcp --dport 3306:3307 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-not-out -d 10.0.0.0/9 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-not-out -d 10.200.0.7/32 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-not-out -o eth0 -m comment --comment "outbound.only.interfaces" -g outrigger-not-out-interfaces
-A outrigger-not-out-interfaces -m owner --uid-owner 1000 -m comment --comment "outbound.only.uids" -g outrigger-not-out-uids
-A outrigger-not-out-uids -p tcp --dport 80:80 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-uids -p tcp --dport 443:443 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-uids -p tcp --dport 8000:8999 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-ports -d 10.0.0.0/8 -m comment --comment "outbound.only.networks" -g outrigger-not-out-networks
-A outrigger-not-out-networks -p tcp -m comment --comment "was to go to the outbound door" -j DROP
-I OUTPUT 1 -j outrigger-guard-out
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*nat
:outrigger-outbound - [0:0]
:outrigger-out - [0:0]
:outrigger-out-interfaces - [0:0]
:outrigger-out-uids - [0:0]
:outrigger-out-ports - [0:0]
:outrigger-out-networks - [0:0]
:outrigger-own - [0:0]
:outrigger-self - [0:0]
:outrigger-self-ports - [0:0]
:outrigger-self-networks - [0:0]
:outrigger-inbound - [0:0]
:outrigger-in - [0:0]
:outrigger-in-interfaces - [0:0]
:outrigger-in-ports - [0:0]
:outrigger-in-networks - [0:0]
-A outrigger-outbound -m owner --uid-owner 2102 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -m owner --gid-owner 2103 -m comment --comment "what the sidecar sends" -g outrigger-own
-A outrigger-outbound -m owner --uid-owner 0 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-outbound -m owner --uid-owner 101 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-outbound -d fe80::/10 -m comment --comment "link-local" -j RETURN
-A outrigger-outbound -d fd00::53/128 -p udp --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d fd00::53/128 -p tcp --syn --dport 53:53 -m comment --comment "dns" -j REDIRECT --to-ports 15053
-A outrigger-outbound -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-outbound -p tcp --syn -m comment --comment "new connections" -g outrigger-out
-A outrigger-out -o docker+ -m comment --comment "outbound.except.interfaces" -j RETURN
-A outrigger-out -p tcp --dport 22:22 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-out -p tcp --dport 3306:3307 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-out -d fd00:1:8000::/33 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-out -o eth0 -m comment --comment "outbound.only.interfaces" -g outrigger-out-interfaces
-A outrigger-out-interfaces -m owner --uid-owner 1000 -m comment --comment "outbound.only.uids" -g outrigger-out-uids
-A outrigger-out-uids -p tcp --dport 80:80 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-uids -p tcp --dport 443:443 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-uids -p tcp --dport 8000:8999 -m comment --comment "outbound.only.ports" -g outrigger-out-ports
-A outrigger-out-ports -d fd00::/8 -m comment --comment "outbound.only.networks" -g outrigger-out-networks
-A outrigger-out-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 17001
-A outrigger-own -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-own -m dscp --dscp 0x0f -m comment --comment "the inbound door calls the app" -j RETURN
-A outrigger-own -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "the service calls itself" -g outrigger-self
-A outrigger-self -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-self -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-self -s 2001:db8::7/128 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-self -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-self-ports
-A outrigger-self-ports -s 2001:db8::/32 -m comment --comment "inbound.only.networks" -g outrigger-self-networks
-A outrigger-self-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 17006
-A outrigger-inbound -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-inbound -p tcp --syn -m addrtype --dst-type LOCAL -m comment --comment "new connections to this machine" -g outrigger-in
-A outrigger-in -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-in -i tun0 -m comment --comment "inbound.except.interfaces" -j RETURN
-A outrigger-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-in -s 2001:db8::7/128 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-in -i eth0 -m comment --comment "inbound.only.interfaces" -g outrigger-in-interfaces
-A outrigger-in -i veth+ -m comment --comment "inbound.only.interfaces" -g outrigger-in-interfaces
-A outrigger-in-interfaces -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-in-ports
-A outrigger-in-ports -s 2001:db8::/32 -m comment --comment "inbound.only.networks" -g outrigger-in-networks
-A outrigger-in-networks -p tcp -m comment --comment "to the door" -j REDIRECT --to-ports 17006
-I OUTPUT 1 -j outrigger-outbound
-I PREROUTING 1 -j outrigger-inbound
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*mangle
:outrigger-guard-in - [0:0]
:outrigger-not-in - [0:0]
:outrigger-not-in-interfaces - [0:0]
:outrigger-not-in-ports - [0:0]
:outrigger-not-in-networks - [0:0]
-A outrigger-guard-in -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-in -i lo -m comment --comment "loopback" -j RETURN
-A outrigger-guard-in -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-in -p tcp -m addrtype --dst-type LOCAL -m comment --comment "not sent to the door" -g outrigger-not-in
-A outrigger-not-in -p tcp --dport 15020:15020 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -p tcp --dport 16006:16006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -p tcp --dport 17006:17006 -m comment --comment "a port of the sidecar" -j RETURN
-A outrigger-not-in -i tun0 -m comment --comment "inbound.except.interfaces" -j RETURN
-A outrigger-not-in -p tcp --dport 22:22 -m comment --comment "inbound.except.ports" -j RETURN
-A outrigger-not-in -s 2001:db8::7/128 -m comment --comment "inbound.except.networks" -j RETURN
-A outrigger-not-in -i eth0 -m comment --comment "inbound.only.interfaces" -g outrigger-not-in-interfaces
-A outrigger-not-in -i veth+ -m comment --comment "inbound.only.interfaces" -g outrigger-not-in-interfaces
-A outrigger-not-in-interfaces -p tcp --dport 8080:8080 -m comment --comment "inbound.only.ports" -g outrigger-not-in-ports
-A outrigger-not-in-ports -s 2001:db8::/32 -m comment --comment "inbound.only.networks" -g outrigger-not-in-networks
-A outrigger-not-in-networks -p tcp -m comment --comment "was to go to the inbound door" -j DROP
-I INPUT 1 -j outrigger-guard-in
COMMIT
END
ip6tables-restore -w --noflush <<'END'
*filter
:outrigger-guard-out - [0:0]
:outrigger-not-out - [0:0]
:outrigger-not-out-interfaces - [0:0]
:outrigger-not-out-uids - [0:0]
:outrigger-not-out-ports - [0:0]
:outrigger-not-out-networks - [0:0]
-A outrigger-guard-out -p tcp ! --syn -m comment --comment "connections that are there" -j RETURN
-A outrigger-guard-out -m conntrack --ctstate DNAT -m comment --comment "sent to the door" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 2102 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -m owner --gid-owner 2103 -m comment --comment "what the sidecar sends" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 0 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-guard-out -m owner --uid-owner 101 -m comment --comment "outbound.except.uids" -j RETURN
-A outrigger-guard-out -d fe80::/10 -m comment --comment "link-local" -j RETURN
-A outrigger-guard-out -d ::1/128 -m comment --comment "loopback" -j RETURN
-A outrigger-guard-out -p tcp -m comment --comment "not sent to the door" -g outrigger-not-out
-A outrigger-not-out -o docker+ -m comment --comment "outbound.except.interfaces" -j RETURN
-A outrigger-not-out -p tcp --dport 22:22 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-not-out -p tcp --dport 3306:3307 -m comment --comment "outbound.except.ports" -j RETURN
-A outrigger-not-out -d fd00:1:8000::/33 -m comment --comment "outbound.except.networks" -j RETURN
-A outrigger-not-out -o eth0 -m comment --comment "outbound.only.interfaces" -g outrigger-not-out-interfaces
-A outrigger-not-out-interfaces -m owner --uid-owner 1000 -m comment --comment "outbound.only.uids" -g outrigger-not-out-uids
-A outrigger-not-out-uids -p tcp --dport 80:80 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-uids -p tcp --dport 443:443 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-uids -p tcp --dport 8000:8999 -m comment --comment "outbound.only.ports" -g outrigger-not-out-ports
-A outrigger-not-out-ports -d fd00::/8 -m comment --comment "outbound.only.networks" -g outrigger-not-out-networks
-A outrigger-not-out-networks -p tcp -m comment --comment "was to go to the outbound door" -j DROP
-I OUTPUT 1 -j outrigger-guard-out
COMMIT
END
