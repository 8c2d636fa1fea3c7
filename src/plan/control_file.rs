//! The text of a control file as endpoints; the file is read and watched elsewhere.

use std::collections::HashMap;

use super::build::peers::endpoints;
use super::peer::EndpointSpec;
use crate::config::problem::Problems;
use crate::config::read_control_file;

/// What a control file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlFile {
    /// The endpoints of each peer, in the order of the file; a peer may have none.
    pub peers: HashMap<String, Vec<EndpointSpec>>,
}

/// Reads it, or says all that is wrong with it; `name` is what messages call the file.
pub fn parse(text: &str, name: &str) -> Result<ControlFile, Problems> {
    let mut problems = Problems::new(name);
    let file = read_control_file(text, &mut problems);
    let said = file.into_iter().filter_map(|file| file.peers).flat_map(|peers| peers.value.0);
    let peers = said.map(|(peer, list)| (peer, endpoints(&list.value, &mut problems))).collect();
    if problems.has_errors() { Err(problems.sorted()) } else { Ok(ControlFile { peers }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_an_endpoint_is_read() {
        let text = "peers:\n  search:\n    - 10.0.0.1:9000\n    - { address: \"[::1]:9\", weight: 5, zone: eu-1a, \
                    identity: \"spiffe://shop/search\", metadata: { version: 1.10 } }\n  empty: []\n";
        let file = parse(text, "peers.yaml").unwrap();
        let search = &file.peers["search"];
        assert_eq!(search[0], EndpointSpec::bare("10.0.0.1:9000".parse().unwrap()));
        assert_eq!((search[1].weight, search[1].zone.as_deref()), (5, Some("eu-1a")));
        assert_eq!(search[1].identity.as_ref().map(|id| id.as_str()), Some("spiffe://shop/search"));
        assert_eq!(search[1].metadata.as_ref().unwrap()["version"], "1.10");
        assert!(file.peers["empty"].is_empty());
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let text = "peers:\n  search:\n    - 10.0.0.1\n    - { address: 10.0.0.2:1, wieght: 5, weight: -1 }\n    \
                    - 10.0.0.3:1\n    - 10.0.0.3:1\nversion: 1\n";
        let problems = parse(text, "peers.yaml").unwrap_err().to_string();
        let expect = "\
peers.yaml:3:7: peers.search[0].address: expected an address to connect to, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`, found `10.0.0.1`
peers.yaml:4:30: peers.search[1].wieght: unknown key `wieght`; did you mean `weight`?
peers.yaml:4:49: peers.search[1].weight: expected a whole number from 0 to 1000000, found `-1`
peers.yaml:6:7: peers.search[3]: this address is given twice, first in line 5
peers.yaml:7:1: version: unknown key `version`; known here: peers";
        assert_eq!(problems, expect);
        assert!(parse("", "peers.yaml").unwrap_err().to_string().contains("peers: is missing"));
    }
}
