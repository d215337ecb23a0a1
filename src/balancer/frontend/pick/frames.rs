//! A response body of frames that are shared between streams, and a status at its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::mpsc;
use tonic::Status;

/// What a stream sends: frames, then how it ended.
pub(super) struct Frames {
    frames: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl Frames {
    pub(super) fn new(frames: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self { frames, ended: false }
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.frames.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Err(status)) => status,
            // The task of the stream is gone without a word: it did not read, or it broke.
            None => Status::aborted("the stream was given up"),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
