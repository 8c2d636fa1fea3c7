//! The section `peers`: the services that this one calls, and the endpoints of a control file.

use super::collect::{List, Named, OneOrMore, OrNone, OrOff, OrSource, OrSystem, Pairs};
use super::fallback::StandIn;
use super::identity::PeerMtls;
use super::kind::{Set, words};
use super::limits::Breaker;
use super::listener::Protocol;
use super::retry::{Hedge, Retry};
use super::route::{Route, Sticky};
use super::section::section;
use super::standing::{Eject, Health};
use super::units::{Count, Percent, Timer};
use super::values::{DnsName, FilePath, HostEntry, HostPort, Label, Listen, SpiffeId, SrvName, Target};

words! {
    /// How an endpoint is chosen.
    Balance {
        /// The lower of latency times load of two random choices; a failure counts as slow.
        PeakEwma "peak-ewma";
        /// The fewer requests in flight of two random choices.
        LeastRequest "least-request";
        /// In turn.
        RoundRobin "round-robin";
        /// By chance.
        Random "random";
        /// Requests of one kind stick to one endpoint, by a ring; one that comes or goes moves its own requests only.
        RingHash "ring-hash";
        /// Requests of one kind stick to one endpoint, by a table: more even than a ring.
        Maglev "maglev";
    }
}

section! {
    /// Which endpoint takes the next request; short form: the way alone.
    Balancing = "by" {
        /// peak-ewma, least-request, round-robin or random; or, with a key, ring-hash or maglev.
        by "by": Set<Balance> = Is("peak-ewma");
        /// What ring-hash and maglev go by: a field, a cookie, or `source`, the caller's address.
        key "key": Option<Set<OrSource<Sticky>>> = Unset("{ header: x-user }");
        /// With a key: what an endpoint takes at most, relative to its fair part; beyond it the next one is used.
        bounded "bounded-load": Set<OrOff<Percent<100, 1000>>> = Is("off");
    }
}

section! {
    /// One service that is called; exactly one of `dns`, `srv`, `file` and `static` says where it is.
    Peer {
        /// A name with A and AAAA records, and a port.
        dns "dns": Option<Set<HostPort>> = Sample("payments.shop.internal:8080");
        /// A name with SRV records.
        srv "srv": Option<Set<SrvName>> = Unset("_http._tcp.payments.shop.internal");
        /// The control file: watched, validated, swapped whole.
        file "file": Option<Set<FilePath>> = Unset("peers.yaml");
        /// Addresses, with or without what a control file could say about them.
        fixed "static": Option<Set<List<Endpoint>>> = Unset("[10.0.0.7:9000, 10.0.0.8:9000]");
        /// The hosts (Host, :authority) that mean this peer; by default its name and its DNS name.
        hosts "hosts": Option<Set<List<HostEntry>>> = Follows("[payments, payments.shop.internal]");
        /// What is spoken; `auto` is ALPN where there is TLS, else the caller's own version.
        protocol "protocol": Set<Protocol> = Is("auto");
        /// TLS with a server certificate, for a service outside the mesh.
        tls "tls": Option<Set<ClientTls>> = Unset("{}");
        /// Mutual TLS and who it must prove to be, or `off`; needed with `identity` unless there is `tls`.
        mtls "mtls": Option<Set<OrOff<PeerMtls>>> = Unset("{ id: spiffe://shop/payments }");
        /// Which endpoint takes the next request.
        balance "balance": Set<Balancing> = Is("{}");
        /// How long an endpoint that appeared later than the others takes to grow into its share, or `off`.
        slow_start "slow-start": Set<OrOff<Timer>> = Is("off");
        /// The age, give or take a tenth, at which an HTTP/2 connection is replaced by a new one, or `none`.
        connection_age "connection-age": Set<OrNone<Timer>> = Is("10m");
        /// How long things may take.
        timeout "timeout": Set<PeerTimeout> = Is("{}");
        /// What a caller gets where this peer gives no answer.
        fallback "fallback": Option<Set<StandIn>> = Unset("{ peer: payments-standby }");
        /// When a failed attempt is followed by another, or `off`.
        retry "retry": Set<OrOff<Retry>> = Is("{}");
        /// When a second attempt is sent beside a slow one, or `off`.
        hedge "hedge": Set<OrOff<Hedge>> = Is("off");
        /// When an endpoint is taken out of the choice, or `off`.
        eject "eject": Set<OrOff<Eject>> = Is("{}");
        /// How endpoints are asked whether they are well, or `off`.
        health "health": Option<Set<OrOff<Health>>> = Unset("{ http: /healthz }");
        /// What may go to it at one time, and when it is not asked at all.
        breaker "breaker": Set<Breaker> = Is("{}");
        /// A local port of its own, one address or a list; what comes in there goes to this peer.
        listen "listen": Option<Set<OneOrMore<Listen>>> = Unset("127.0.0.1:5432");
        /// What happens to some of its requests; of several routes the first one that means a request takes it.
        routes "routes": Set<List<Route>> = Is("[]");
    }
}

section! {
    /// TLS towards a service outside the mesh.
    ClientTls {
        /// Whom to trust: `system`, or a PEM file.
        roots "roots": Set<OrSystem<FilePath>> = Is("system");
        /// The name to ask for and to verify; by default the peer's DNS name.
        sni "sni": Option<Set<DnsName>> = Follows("payments.shop.internal");
    }
}

section! {
    /// How long things may take when this peer is called.
    PeerTimeout {
        /// One connection attempt, TLS included.
        connect "connect": Set<Timer> = Is("1s");
        /// A request, from its head to the answer's last byte, or `none`.
        request "request": Set<OrNone<Timer>> = Is("none");
        /// One attempt, until its answer begins, or `none`.
        attempt "attempt": Set<OrNone<Timer>> = Is("none");
        /// A body that stands still, either way.
        idle "idle": Set<Timer> = Is("60s");
        /// A tunnel (WebSocket, CONNECT, opaque TCP) that stands still.
        tunnel "tunnel": Set<Timer> = Is("1h");
        /// An idle HTTP/1 connection, until the server's own keep-alive is learned.
        keep_alive "keep-alive": Set<Timer> = Is("4s");
    }
}

section! {
    /// One address of a peer; short form: the address alone.
    Endpoint = "address" {
        /// Where to connect.
        address "address": Option<Set<Target>> = Required("10.0.0.7:9000");
        /// Share of the traffic relative to the others; 0 takes none.
        weight "weight": Set<Count<0, 1_000_000>> = Is("1");
        /// The lowest number is used first; what it cannot take overflows to the next.
        priority "priority": Set<Count<0, 65535>> = Is("0");
        /// Where it runs.
        zone "zone": Option<Set<Label>> = Unset("eu-1a");
        /// The SPIFFE ID that it must prove once identity is in force.
        identity "identity": Option<Set<SpiffeId>> = Unset("spiffe://shop/search");
        /// Free facts about it.
        metadata "metadata": Option<Set<Pairs>> = Unset("{ version: \"2\" }");
    }
}

section! {
    /// A control file: the endpoints of peers, written by whatever knows them.
    ControlFile {
        /// The endpoints of each peer by its name; names that this sidecar does not use are passed over.
        peers "peers": Option<Set<Named<List<Endpoint>>>> = Required("{ search: [10.0.0.1:9000] }");
    }
}
