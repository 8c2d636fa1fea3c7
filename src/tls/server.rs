//! Serving TLS with a certificate from files: HTTP/2 and HTTP/1.1 by ALPN.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;

use crate::plan::door::ServerTlsPlan;
use crate::tls::files;

/// The configuration for a door's certificate.
///
/// # Errors
/// One line with the file's path: a file is missing or not PEM, or key and certificate do not belong together.
pub fn config(plan: &ServerTlsPlan) -> Result<Arc<ServerConfig>, String> {
    let chain = files::certificates(&plan.certificate)?;
    let key = files::private_key(&plan.key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| {
            format!("{} does not fit the key {}: {error}", plan.certificate.display(), plan.key.display())
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
