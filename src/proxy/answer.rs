//! The body of what a caller gets: the peer's, under guard, or our own text; its end closes the exchange's record.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::failure;
use super::record::Exchange;
use super::stale::Filling;
use crate::call::Failure;
use crate::http::body::BodyError;
use crate::http::guard::Guard;
use crate::upstream::lease::AnswerBody;

/// What a caller gets.
pub struct Reply {
    source: Source,
    /// Dropped with the reply: that is the end of the exchange.
    exchange: Option<Box<Exchange>>,
    /// Takes a copy, where good answers are kept.
    filling: Option<Box<Filling>>,
}

enum Source {
    Text(Bytes),
    Peer(AnswerBody, Guard),
}

impl Reply {
    /// Our own text; `exchange` ends when it is sent.
    pub fn text(text: Bytes, exchange: Option<Box<Exchange>>) -> Self {
        Self { source: Source::Text(text), exchange, filling: None }
    }

    /// The peer's body under `guard`.
    pub fn peer(body: AnswerBody, guard: Guard, exchange: Box<Exchange>) -> Self {
        Self { source: Source::Peer(body, guard), exchange: Some(exchange), filling: None }
    }

    /// The same, a copy of which is kept if it is whole.
    pub fn kept(mut self, filling: Option<Box<Filling>>) -> Self {
        self.filling = filling;
        self
    }

    fn finish(&mut self, complete: bool) {
        let carried = match &self.source {
            Source::Text(_) => 0,
            Source::Peer(_, guard) => guard.carried(),
        };
        if let Some(filling) = self.filling.take().filter(|_| complete) {
            filling.keep(Instant::now());
        }
        if let Some(mut exchange) = self.exchange.take() {
            exchange.ended(carried, complete);
        }
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Text(text) => {
                let text = std::mem::take(text);
                (!text.is_empty()).then(|| Ok(Frame::data(text)))
            }
            Source::Peer(body, guard) => ready!(guard.poll_frame(body, cx)),
        };
        if let (Some(Ok(frame)), Some(exchange)) = (&frame, &mut this.exchange) {
            exchange.passed(frame);
        }
        match &frame {
            None => this.finish(true),
            // Nobody asks again after trailers.
            Some(Ok(frame)) if frame.is_trailers() => {
                this.filling = None;
                if let (Some(exchange), Some(trailers)) = (&mut this.exchange, frame.trailers_ref()) {
                    exchange.concluded(trailers, Instant::now());
                }
                this.finish(true);
            }
            Some(Err(error)) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.broke(Failure::new(failure::broken_answer(error), error.to_string()));
                }
                this.finish(false);
            }
            Some(Ok(frame)) => {
                if let (Some(filling), Some(data)) = (&mut this.filling, frame.data_ref()) {
                    filling.data(data);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_empty(),
            Source::Peer(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Peer(body, _) => body.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // A server that knows the length stops asking at the last byte, and asks nothing where there is no body.
        let complete = match &self.source {
            Source::Text(text) => text.is_empty(),
            Source::Peer(body, _) => body.is_whole(),
        };
        self.finish(complete);
    }
}
