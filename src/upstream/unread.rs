//! An answer that nobody wants: what little is left of it is read, so that its connection serves again.
//!
//! Dropped unread it would close the HTTP/1 connection or reset the HTTP/2 stream, and a peer that fails for a moment would
//! have to take new connections just then.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::lease::{Answer, AnswerBody};
use super::peer::Peer;

/// Bytes that are read at most.
const MOST: usize = 16 * 1024;

/// How long that may take.
const LONGEST: Duration = Duration::from_millis(250);

/// Answers of one peer that are waited for at one time. Retries are few by their budget; a fallback stands in for every
/// request, and nobody waits for what it leaves.
pub(super) const MOST_AT_ONCE: usize = 64;

/// Reads the rest of `peer`'s answer where that is worth it.
pub fn discard(peer: &Peer, answer: Answer) {
    let body = answer.into_body();
    if body.is_end_stream() || body.still_sends() || body.size_hint().lower() > MOST as u64 {
        return;
    }
    let mut reading = Box::pin(read(body, MOST));
    // Until its end the answer has a place among its endpoint's requests in flight: where these are few, the next attempt
    // needs that more than a connection.
    let places_are_few = peer.policy().rules.endpoint_limits.in_flight.is_some();
    if reading.as_mut().now_or_never().is_none()
        && !places_are_few
        && let Ok(place) = peer.unread().clone().try_acquire_owned()
    {
        peer.tasks().spawn(async move {
            let _ = tokio::time::timeout(LONGEST, reading).await;
            drop(place);
        });
    }
}

/// Reads a body to its end, or until more than `most` bytes of it came.
pub async fn read(mut body: AnswerBody, most: usize) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::http::body::Body;
    use crate::plan::door::Protocol;
    use crate::upstream::lease::{Lease, Version};
    use crate::upstream::pool::Counts;
    use crate::upstream::rig::{Rig, ended, get, post, read_until, write};

    /// Lets every task run that can.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_rest_is_read_and_the_connection_serves_again() {
        let large = format!("HTTP/1.1 503 X\r\ncontent-length: {}\r\n\r\n", MOST + 1);
        let piece = format!("4001\r\n{}\r\n", "x".repeat(MOST + 1));
        for (head, rest, kept) in [
            ("HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbu", "sy", true),
            ("HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbusy\r\n", "0\r\n\r\n", true),
            (&large, "", false),
            ("HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n", &piece, false),
            // It never ends.
            ("HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbu", "s", false),
        ] {
            let rig = Rig::new(Protocol::Auto);
            let (lease, mut server) = rig.connect(Version::Http1).await;
            let (answer, ()) = tokio::join!(lease.unwrap().send(get("/"), None), async {
                read_until(&mut server, "\r\n\r\n").await;
                write(&mut server, head).await;
            });
            discard(&rig.peer, answer.unwrap());
            write(&mut server, rest).await;
            settle().await;
            tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
            settle().await;
            let counts = if kept { Counts { http1: 1, idle: 1, ..Counts::default() } } else { Counts::default() };
            assert_eq!(rig.endpoint.state(Instant::now()).pool, counts, "{head:?} {rest:?}");
            assert!(kept || ended(&mut server).await, "{head:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_under_a_limit_is_not_held_for_what_is_to_come() {
        let rig = Rig::new(Protocol::Auto);
        let mut policy = (*rig.peer.policy()).clone();
        policy.rules.endpoint_limits.in_flight = Some(1);
        rig.peer.set_policy(std::sync::Arc::new(policy));
        let (lease, mut server) = rig.connect(Version::Http1).await;
        let (answer, ()) = tokio::join!(lease.unwrap().send(get("/"), None), async {
            read_until(&mut server, "\r\n\r\n").await;
            write(&mut server, "HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbu").await;
        });
        let before = Instant::now();
        discard(&rig.peer, answer.unwrap());
        assert!(ended(&mut server).await && before.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_waited_for_than_there_are_places() {
        let rig = Rig::new(Protocol::Auto);
        let mut servers = Vec::new();
        for n in 0..=MOST_AT_ONCE {
            let (lease, mut server) = rig.connect(Version::Http1).await;
            let (answer, ()) = tokio::join!(lease.unwrap().send(get("/"), None), async {
                read_until(&mut server, "\r\n\r\n").await;
                write(&mut server, "HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbu").await;
            });
            let before = Instant::now();
            discard(&rig.peer, answer.unwrap());
            if n == MOST_AT_ONCE {
                assert!(ended(&mut server).await && before.elapsed().is_zero());
            }
            servers.push(server);
        }
        assert_eq!(rig.endpoint.state(Instant::now()).pool.http1, MOST_AT_ONCE);
        tokio::time::advance(LONGEST + Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(rig.peer.unread().available_permits(), MOST_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_still_being_sent_is_broken_off_at_once() {
        let rig = Rig::new(Protocol::Auto);
        let (lease, mut server) = rig.connect(Version::Http1).await;
        let lease: Lease = lease.unwrap();
        let mut request = post(Body::text("never asked for"));
        request.headers_mut().insert("expect", "100-continue".parse().unwrap());
        let (answer, ()) = tokio::join!(lease.send(request, None), async {
            read_until(&mut server, "\r\n\r\n").await;
            write(&mut server, "HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\n").await;
        });
        discard(&rig.peer, answer.unwrap());
        assert!(ended(&mut server).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_rest_resets_no_stream() {
        let rig = Rig::new(Protocol::Auto);
        let (said, heard) = tokio::sync::oneshot::channel();
        let tasks = rig.upstreams.tasks.clone();
        let lease = rig.connect_http2(h2::server::Builder::new(), |mut connection| async move {
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            let head = http::Response::builder().status(503).body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            tasks.spawn(async move {
                tokio::time::sleep(LONGEST / 2).await;
                body.send_data("busy".into(), true).unwrap();
                let end = tokio::time::timeout(Duration::from_secs(1), std::future::poll_fn(|cx| body.poll_reset(cx)));
                said.send(end.await.ok().and_then(Result::ok)).unwrap();
            });
            while connection.accept().await.is_some() {}
        });
        discard(&rig.peer, lease.await.send(get("/"), None).await.unwrap());
        assert_eq!(heard.await.unwrap(), None);
    }
}
