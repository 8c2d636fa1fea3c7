//! A body that ends where its head says, though what carries it goes on.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};

use super::body::{Body, BodyError};

/// So many bytes of a body, and not one more or less.
pub struct Promised {
    body: Body,
    left: u64,
}

impl Promised {
    /// The first `length` bytes of `body`, which has no trailers.
    pub fn new(body: Body, length: u64) -> Self {
        Self { body, left: length }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Polls for the next frame; an end before its time is an error.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame.into_data().ok(),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => None,
        };
        let Some(mut data) = frame else { return Poll::Ready(Some(Err(BodyError::Short))) };
        data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
