//! The agent behind a socket, by the crate `spiffe`: its messages in our terms.
//!
//! The crate reads the gRPC messages and the certificates' outer form; it knows nothing of CRLs.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::cert::Certificate;
use spiffe::transport::{Endpoint, TransportError};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, X509Svid};

use super::{Agent, Fault, Svid, Update, Updates};
use crate::ids::Addr;
use crate::plan::identity::WorkloadApiPlan;

/// Where an agent listens.
pub(super) struct Socket(Endpoint);

impl Socket {
    pub(super) fn of(plan: &WorkloadApiPlan) -> Self {
        Self(match &plan.agent {
            Addr::Unix(path) => Endpoint::Unix(path.to_path_buf()),
            Addr::Tcp(addr) => Endpoint::Tcp { host: addr.ip(), port: addr.port() },
        })
    }
}

impl Agent for Socket {
    type Stream = Streaming;

    async fn open(&mut self) -> Result<Streaming, Fault> {
        let client = WorkloadApiClient::connect(self.0.clone()).await.map_err(told)?;
        let stream = client.stream_x509_contexts().await.map_err(told)?;
        Ok(Streaming { stream: Box::pin(stream), _client: client })
    }
}

type Contexts = dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send;

/// The agent's answer, over a connection of its own.
pub(super) struct Streaming {
    stream: Pin<Box<Contexts>>,
    /// The connection ends with the last handle to it.
    _client: WorkloadApiClient,
}

impl Updates for Streaming {
    async fn next(&mut self) -> Option<Result<Update, Fault>> {
        Some(self.stream.next().await?.map(|context| update(&context)).map_err(told))
    }
}

fn update(context: &X509Context) -> Update {
    let bundle = |(domain, bundle): (&spiffe::TrustDomain, &Arc<spiffe::X509Bundle>)| {
        (Arc::from(domain.as_str()), certificates(bundle.authorities()))
    };
    Update {
        svids: context.svids().iter().map(|given| svid(given)).collect(),
        bundles: context.bundle_set().iter().map(bundle).collect(),
    }
}

fn svid(svid: &X509Svid) -> Svid {
    Svid {
        id: svid.spiffe_id().to_string(),
        chain: certificates(svid.cert_chain()),
        key: PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()).into(),
    }
}

fn certificates(list: &[Certificate]) -> Vec<CertificateDer<'static>> {
    list.iter().map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec())).collect()
}

fn told(error: WorkloadApiError) -> Fault {
    match error {
        WorkloadApiError::NoIdentityIssued => Fault::NoEntry("no identity issued".to_owned()),
        // The standard gives it this one meaning (SPIFFE_Workload_API §6.1).
        WorkloadApiError::PermissionDenied(why) => Fault::NoEntry(why),
        WorkloadApiError::Transport(TransportError::Status(status)) => {
            Fault::Broken(format!("the agent answered {}: {}", status.code(), status.message()))
        }
        WorkloadApiError::Transport(error) => Fault::Broken(format!("cannot be reached: {}", root(&error))),
        error => Fault::Unreadable(format!("an update that cannot be used: {error}")),
    }
}

/// The last link of a chain of errors, which is the one that says something.
fn root(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
