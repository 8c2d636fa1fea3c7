//! The sections `inbound` and `outbound`: where connections come in and what one caller may take.

use super::collect::{List, OneOrMore, OrNone, Switch};
use super::facts::Facts;
use super::identity::Mtls;
use super::jwt::Jwt;
use super::kind::{Set, words};
use super::limits::{Adaptive, Rate};
use super::policy::{AccessRule, Authorization, Probe};
use super::route::Route;
use super::section::section;
use super::units::{Count, Size, SizeWithin, Span, Timer};
use super::values::{AllowEntry, FilePath, Listen, Network, Passed, Target, TcpListen, Upgrade};

words! {
    /// What is spoken.
    Protocol {
        /// At a door: found by looking. At a peer: by ALPN, else the caller's own version.
        Auto "auto";
        /// HTTP/1.0 and 1.1.
        Http1 "http1";
        /// HTTP/2.
        Http2 "http2";
        /// Opaque bytes.
        Tcp "tcp";
    }
}

words! {
    /// What happens to names that no peer has.
    Otherwise {
        /// They are looked up and dialled.
        Pass "pass";
        /// They are refused.
        Deny "deny";
    }
}

section! {
    /// From the network to the service.
    Inbound {
        /// Where callers connect to, one address or a list.
        listen "listen": Set<OneOrMore<Listen>> = Asks(Facts::inbound);
        /// Where the service listens; needed unless `ports` says it.
        app "app": Option<Set<Target>> = Sample("127.0.0.1:8080");
        /// What is spoken; `auto` finds out by looking, anything else is binding.
        protocol "protocol": Set<Protocol> = Is("auto");
        /// More ports of the same service.
        ports "ports": Set<List<Port>> = Is("[]");
        /// A certificate to serve plain HTTPS and HTTP/2 with.
        tls "tls": Option<Set<ServerTls>> = Unset("{}");
        /// Mutual TLS: `strict`, `permissive` or `off`; with `identity` by default `strict`.
        mtls "mtls": Option<Set<Mtls>> = Unset("strict");
        /// Whose TLS is handed to the service untouched: server names at the door of `app`, `NAME:PORT`, or all at a port.
        passthrough "passthrough": Set<List<Passed>> = Is("[]");
        /// Protocols that may follow an HTTP/1 upgrade, besides websocket.
        upgrades "upgrades": Set<List<Upgrade>> = Is("[]");
        /// Networks whose `Forwarded` and `X-Forwarded-*` are believed; from others they are replaced.
        trusted "trusted": Set<List<Network>> = Is("[]");
        /// Issuers whose JSON Web Tokens are believed; a token that is none of theirs, or not valid, is refused.
        jwt "jwt": Set<List<Jwt>> = Is("[]");
        /// Only what one of these rules means is let in, once there is one.
        allow "allow": Option<Set<OneOrMore<AccessRule>>> = Unset("{ from: spiffe://shop/frontend, paths: /orders/* }");
        /// What one of these rules means is kept out, whatever `allow` says.
        deny "deny": Option<Set<OneOrMore<AccessRule>>> = Unset("{ paths: /internal/* }");
        /// What happens to what they keep out: `enforce` refuses it, `audit` lets it in and tells of it.
        authorization "authorization": Set<Authorization> = Is("enforce");
        /// Paths of which a GET is let in, whoever asks, for health checks of the platform; `deny` still counts.
        probes "probes": Set<List<Probe>> = Is("[]");
        /// What callers may take.
        limits "limits": Set<Limits> = Is("{}");
        /// How long things may take.
        timeout "timeout": Set<InboundTimeout> = Is("{}");
        /// What happens to some of the requests; of several routes the first one that means a request takes it.
        routes "routes": Set<List<Route>> = Is("[]");
    }
}

section! {
    /// One more port of the service.
    Port {
        /// Where callers connect to.
        listen "listen": Option<Set<Listen>> = Required("0.0.0.0:15007");
        /// Where the service listens for it.
        app "app": Option<Set<Target>> = Required("127.0.0.1:9090");
        /// What is spoken.
        protocol "protocol": Set<Protocol> = Is("auto");
    }
}

section! {
    /// A certificate to serve TLS with.
    ServerTls {
        /// PEM file, leaf first.
        certificate "certificate": Option<Set<FilePath>> = Required("tls/cert.pem");
        /// PEM file of its private key.
        key "key": Option<Set<FilePath>> = Required("tls/key.pem");
    }
}

section! {
    /// What the callers of a door may take.
    Limits {
        /// Open connections at each listener.
        connections "connections": Set<Count<1, 1_000_000>> = Is("10000");
        /// Bytes in a request's head.
        head "head": Set<SizeWithin<8192, 1_048_576>> = Is("64KiB");
        /// Fields in a request's head.
        fields "fields": Set<Count<8, 4096>> = Is("100");
        /// Bytes in a request's body, or `none`.
        body "body": Set<OrNone<Size>> = Is("none");
        /// Requests in flight through all listeners of this side, or `none`.
        in_flight "in-flight": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// How often requests may come, one rate or a list of which all must allow it.
        rate "rate": Option<Set<OneOrMore<Rate>>> = Unset("500/s");
        /// A limit of the requests in flight that follows the latency, `on` or `off`.
        adaptive "adaptive": Set<Switch<Adaptive>> = Is("off");
    }
}

section! {
    /// How long things may take at the inbound door.
    InboundTimeout {
        /// A request's head, from its first byte to its end.
        head "head": Set<Timer> = Is("10s");
        /// A caller's connection between two requests.
        keep_alive "keep-alive": Set<Timer> = Is("75s");
        /// Connecting to the service.
        connect "connect": Set<Timer> = Is("1s");
        /// A request, from its head to the answer's last byte, or `none`.
        request "request": Set<OrNone<Timer>> = Is("none");
        /// A body that stands still, either way.
        idle "idle": Set<Timer> = Is("60s");
        /// A tunnel (WebSocket, upgrade, opaque TCP) that stands still.
        tunnel "tunnel": Set<Timer> = Is("1h");
    }
}

section! {
    /// From the service to its peers: one address that routes by Host or :authority and is an HTTP forward proxy.
    Outbound {
        /// Where the service connects to, one address or a list; `[::1]` beside 127.0.0.1 is not needed where there is no IPv6.
        listen "listen": Set<OneOrMore<Listen>> = Asks(Facts::outbound);
        /// What happens to names that no peer has: `pass` where only this machine reaches the door, else `deny`.
        otherwise "otherwise": Option<Set<Otherwise>> = Follows("pass");
        /// Names, addresses or networks to pass although they are special, as loopback is, or of a peer with `mtls`.
        allow "allow": Set<List<AllowEntry>> = Is("[]");
        /// Protocols that may follow an HTTP/1 upgrade, besides websocket.
        upgrades "upgrades": Set<List<Upgrade>> = Is("[]");
        /// Networks whose `Forwarded` and `X-Forwarded-*` are believed; from others they are replaced.
        trusted "trusted": Set<List<Network>> = Is("[]");
        /// What callers may take.
        limits "limits": Set<Limits> = Is("{}");
        /// How long things may take.
        timeout "timeout": Set<OutboundTimeout> = Is("{}");
    }
}

section! {
    /// How long things may take at the outbound door; calling a peer has its own.
    OutboundTimeout {
        /// A request's head, from its first byte to its end.
        head "head": Set<Timer> = Is("10s");
        /// A caller's connection between two requests.
        keep_alive "keep-alive": Set<Timer> = Is("75s");
        /// A body that stands still, either way.
        idle "idle": Set<Timer> = Is("60s");
        /// A tunnel (WebSocket, upgrade, CONNECT) that stands still.
        tunnel "tunnel": Set<Timer> = Is("1h");
    }
}

section! {
    /// How names are resolved.
    Dns {
        /// The DNS door, one address or a list: answers the service's questions, those for hosts of peers itself.
        listen "listen": Option<Set<OneOrMore<TcpListen>>> = Unset("127.0.0.1:15053");
        /// Servers to ask; an empty list means those of /etc/resolv.conf.
        servers "servers": Set<List<super::values::NameServer>> = Is("[]");
        /// An answer is used at least this long, whatever its TTL.
        floor "floor": Set<Span> = Is("1s");
        /// An answer is used at most this long.
        ceiling "ceiling": Set<Timer> = Is("5m");
        /// How long the last good answer is kept when the servers fail.
        stale_for "stale-for": Set<Span> = Is("10m");
        /// One lookup in all, retries included.
        timeout "timeout": Set<Timer> = Is("5s");
        /// Whether /etc/hosts is read first.
        hosts_file "hosts-file": Set<bool> = Is("true");
    }
}
