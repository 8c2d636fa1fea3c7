//! What the file keeps a captured connection from.

use super::{explain_in, says};

#[test]
fn plaintext_to_a_host_of_the_mesh_is_told_as_refused() {
    let file = "service: s\nredirect: {}\nidentity: { workload-api: unix:/x }\npeers:\n  \
                db: { static: [198.51.100.7:15006], mtls: { id: spiffe://shop/db } }\n  \
                late: { dns: \"late.shop:15006\", mtls: { id: spiffe://shop/late } }\n";
    let living =
        "{\"peers\":[{\"name\":\"late\",\"kind\":\"named\",\"endpoints\":[{\"address\":\"198.51.100.9:15006\"}]}]}";
    let refused = "403, reason address_refused (side policy): ";
    for (asking, about, what) in [
        (
            "GET | to 198.51.100.7:5432",
            "refused",
            format!("{refused}198.51.100.7:5432 is at an address of the peer `db`"),
        ),
        ("GET | to 198.51.100.7:5432", "shown as", "a reset".to_owned()),
        ("GET | http://x/ | to 198.51.100.7:80", "refused", refused.to_owned()),
        ("GET | https://x/ | to 198.51.100.7:443", "endpoint", "198.51.100.7:443 itself".to_owned()),
        ("GET | http://db/ | to 198.51.100.7:80", "peer", "db, by its host `db`".to_owned()),
        ("GET | to 198.51.100.9:5432", "endpoint", "198.51.100.9:5432 itself".to_owned()),
        (&format!("GET | to 198.51.100.9:5432 | {living}"), "refused", "of the peer `late`".to_owned()),
    ] {
        let text = explain_in(file, asking);
        assert!(says(&text, about, &what), "{asking}: {about} {what}\n{text}");
    }
}

#[test]
fn rules_mean_all_ports_that_lead_to_an_app_where_they_deny() {
    let file =
        "service: s\nredirect: {}\ninbound:\n  app: 127.0.0.1:8080\n  deny: { ports: [8080], paths: [\"/admin/*\"] }\n";
    for asking in ["to 192.0.2.7:8080", "from 192.0.2.1"] {
        let text = explain_in(file, &format!("GET | http://s/admin/x | in | {asking}"));
        assert!(
            says(&text, "refused", "403, reason denied (side policy): `inbound.deny` (line 5)"),
            "{asking}: {text}"
        );
    }
    let text = explain_in(file, "GET | http://s/admin/x | in | to 192.0.2.7:9090");
    assert!(says(&text, "authorization", "no rule denies it"), "{text}");
}
