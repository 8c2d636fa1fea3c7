//! `Body`: the body of a message, whichever leg it comes from; an enum, so that no layer costs a box.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::awaited::Awaited;
use super::guard::Guarded;
use super::promised::Promised;
use super::replay::Replay;
use super::tee::Teed;
use super::trailers;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// An HTTP/1 leg broke.
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    /// An HTTP/2 leg broke or reset the stream.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// Fewer bytes than `content-length` promised (h2 ends a body cleanly on RST_STREAM(NO_ERROR)).
    #[error("the body ended before its content-length")]
    Short,
    /// Nothing moved for the idle time.
    #[error("the body stood still for too long")]
    Idle,
    /// More bytes than the limit.
    #[error("the body is larger than the limit")]
    TooLarge,
    /// The exchange's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// A later attempt sends it now.
    #[error("a later attempt took the body over")]
    Superseded,
    /// A shutdown's grace ended.
    #[error("the grace of the shutdown ended")]
    Forced,
}

/// A message's body.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// One piece, from this proxy itself.
    Text(Bytes),
    /// From an HTTP/1 leg.
    Http1(Incoming),
    /// From an HTTP/2 leg.
    Http2(Http2Body),
    /// Any of them under guard.
    Guarded(Box<Guarded<Body>>),
    /// Any of them while it is copied.
    Teed(Box<Teed>),
    /// A request's that can be sent again.
    Replay(Box<Replay>),
    /// A request's that its sender keeps back until it is asked for.
    Awaited(Box<Awaited>),
    /// An answer's that its leg does not know the end of.
    Promised(Box<Promised>),
}

/// The receiving half of an HTTP/2 stream; gives window back as its pieces are taken.
pub struct Http2Body {
    stream: h2::RecvStream,
    /// What `content-length` still promises.
    promised: Option<u64>,
    data_done: bool,
}

impl Http2Body {
    /// Wraps a stream; `promised` is the message's content-length, if it has one and a body is to be expected.
    pub fn new(stream: h2::RecvStream, promised: Option<u64>) -> Self {
        Self { stream, promised, data_done: false }
    }

    /// The stream itself, for what is to become a tunnel.
    pub fn into_stream(self) -> h2::RecvStream {
        self.stream
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error here means the stream is gone; the next poll reports it.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.promised {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => {
                    // h2 remembers an END_STREAM, after which RST_STREAM(NO_ERROR) is legal (RFC 9113 §8.1): here there was
                    // none, and only a body of which every promised byte came is whole.
                    self.data_done = true;
                    if error.reason() == Some(h2::Reason::NO_ERROR) && self.promised == Some(0) {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => self.data_done = true,
            }
            if self.promised.take().is_some_and(|left| left > 0) {
                return Poll::Ready(Some(Err(BodyError::Short)));
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(trailers::kept(trailers).map(|kept| Ok(Frame::trailers(kept)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl Body {
    /// One piece of text.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(text.into())
    }

    /// Whether all that was promised came, even where the stream's end is still to be read.
    pub fn is_whole(&self) -> bool {
        self.is_end_stream() || matches!(self, Self::Http2(body) if body.promised == Some(0))
    }

    /// How long it may stand still, where it is under guard.
    pub fn idle(&self) -> Option<std::time::Duration> {
        match self {
            Self::Guarded(body) => Some(body.idle()),
            Self::Teed(body) => body.inner().idle(),
            Self::Replay(body) => body.idle(),
            _ => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => {
                let text = std::mem::take(text);
                Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
            }
            Self::Http1(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_trailers() => Poll::Ready(trailers::passed(frame).map(Ok)),
                frame => Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1))),
            },
            Self::Http2(body) => body.poll_frame(cx),
            Self::Guarded(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Teed(body) => body.poll_frame(cx),
            Self::Replay(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Awaited(body) => body.poll_frame(cx),
            Self::Promised(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_empty(),
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
            Self::Guarded(body) => body.is_end_stream(),
            Self::Teed(body) => body.inner().is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
            Self::Awaited(body) => body.inner().is_end_stream(),
            Self::Promised(body) => body.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Http1(body) => body.size_hint(),
            Self::Guarded(body) => body.size_hint(),
            Self::Teed(body) => body.inner().size_hint(),
            Self::Replay(body) => body.size_hint(),
            Self::Awaited(body) => body.inner().size_hint(),
            Self::Promised(body) => SizeHint::with_exact(body.left()),
            Self::Http2(body) => match body.promised {
                Some(left) => SizeHint::with_exact(left),
                None if body.stream.is_end_stream() => SizeHint::with_exact(0),
                None => SizeHint::default(),
            },
        }
    }
}

/// The `content-length` of a message, if it has a valid one.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
