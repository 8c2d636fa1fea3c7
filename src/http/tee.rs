//! A body that is copied while it passes, up to a limit; whoever wants the copy is told once, of the whole or of none.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};

use super::body::{Body, BodyError};

/// Is given the copy of a whole body; `None` where it was too large, broke off or had trailers.
pub type Done = Box<dyn FnOnce(Option<Bytes>) + Send + Sync>;

/// A body while it is copied.
pub struct Teed {
    body: Body,
    copy: Vec<u8>,
    most: usize,
    done: Option<Done>,
}

impl Teed {
    /// Copies `body` up to `most` bytes.
    pub fn new(body: Body, most: usize, done: Done) -> Self {
        Self { body, copy: Vec::new(), most, done: Some(done) }
    }

    /// The body itself.
    pub fn inner(&self) -> &Body {
        &self.body
    }

    /// Polls for the next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
            None => self.finish(true),
            Some(Ok(Some(data))) if self.done.is_some() => {
                if self.copy.len() + data.len() > self.most {
                    self.finish(false);
                } else {
                    self.copy.extend_from_slice(data);
                    // Whoever knows the length does not ask again after the last piece.
                    if self.body.is_end_stream() {
                        self.finish(true);
                    }
                }
            }
            Some(Ok(Some(_))) => {}
            Some(Ok(None) | Err(_)) => self.finish(false),
        }
        Poll::Ready(frame)
    }

    fn finish(&mut self, whole: bool) {
        let copy = std::mem::take(&mut self.copy);
        if let Some(done) = self.done.take() {
            done(whole.then(|| copy.into()));
        }
    }
}

impl Drop for Teed {
    fn drop(&mut self) {
        self.finish(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt as _;
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn the_copy_is_whole_or_none() {
        for (most, read, expect) in [(5, true, Some(Bytes::from("hello"))), (4, true, None), (5, false, None)] {
            let told = Arc::new(Mutex::new(Vec::new()));
            let to = told.clone();
            let body = Teed::new(Body::text("hello"), most, Box::new(move |copy| to.lock().push(copy)));
            let body = Body::Teed(Box::new(body));
            if read {
                assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
            } else {
                drop(body);
            }
            assert_eq!(*told.lock(), [expect], "{most} {read}");
        }
    }
}
