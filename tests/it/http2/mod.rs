//! HTTP/2 through the binary, and what meets it on the other leg.

mod bodies;
mod connections;
mod heads;
mod informational;
mod trailers;
mod tunnels;

use std::io::{BufReader, Read, Write};

use http::{HeaderMap, HeaderValue};

use crate::harness::{App, Sidecar, field, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, HeaderValue::from_static(value));
    map
}

/// An exchange went well, as its access line has it.
fn told_well(sidecar: &Sidecar, path: &str) {
    let line = sidecar.says(&[&format!("path={path}")]);
    assert!(!line.contains("reason="), "{line}");
}

/// An HTTP/1 app that reads one whole request, chunks and trailers included, reports it and sends `answer`.
fn chunked_app(answer: &'static str) -> App {
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let mut all = head.clone();
            if field(&head, "transfer-encoding").is_some() {
                let mut byte = [0];
                while !(all.contains("\r\n0\r\n") && all.ends_with("\r\n\r\n")) {
                    if reader.read_exact(&mut byte).is_err() {
                        return;
                    }
                    all.push(char::from(byte[0]));
                }
            }
            report.send(all).unwrap();
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}
