//! The body of a response as it passes to the application. Nothing is buffered: what is not read stays with the endpoint, as far
//! as the stream's window goes. Ends the attempt by what the trailers say; dropping it cancels the call.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body, Frame};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    attempt::Attempt,
    call::{Timer, Verdict, of_error},
    deadlines::{Expired, Limits},
    framing::MessageCounter,
    orca,
    outcome::{Class, class_of, class_of_headers},
    why::{self, What},
};

/// Whether this is the head of a gRPC response. What is not names the middlebox it came from as well as it can.
pub(crate) fn check(response: &Response<h2::RecvStream>, address: &str, number: u32) -> Result<(), Status> {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if class_of_headers(response.headers()).is_some() || (response.status() == StatusCode::OK && is_grpc) {
        if response.body().is_end_stream() && class_of_headers(response.headers()).is_none() {
            return Err(no_status(address, number));
        }
        return Ok(());
    }
    let kind = kind.map_or("none".into(), |v| String::from_utf8_lossy(v.as_bytes()));
    let message = format!(
        "call to {address} failed: what answered does not speak gRPC (HTTP {}, content-type {kind}): something between \
         here and the endpoint breaks it",
        response.status().as_u16()
    );
    Err(why::status(code_of_status(response.status()), message, Some(address), What::NotGrpc, number))
}

fn no_status(address: &str, number: u32) -> Status {
    let message = format!(
        "call to {address} failed: the response ended without grpc-status: something between here and the endpoint \
         drops its trailers"
    );
    why::status(Code::Unknown, message, Some(address), What::NotGrpc, number)
}

/// The code gRPC gives to an HTTP status that came in place of its own.
pub(crate) fn code_of_status(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// A response's messages and trailers.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    /// `None` once it is over: letting go of it early is what cancels the call.
    stream: Option<h2::RecvStream>,
    attempt: Attempt,
    limits: Limits,
    timer: Timer,
    last_message: Option<Instant>,
    data_ended: bool,
    early: Option<Early>,
}

/// What the head of a response told of load. It counts for a stream, which may go on for long, from its second message on. A call
/// of one answer tells at its end, when it is known that it went well: two words for one call would bring two further ones.
#[derive(Debug)]
struct Early {
    rif: u32,
    told_us: u64,
    messages: MessageCounter,
}

impl Early {
    /// Whether it was a stream's, with what has come now.
    fn is_streams(&mut self, bytes: &[u8]) -> bool {
        self.messages.feed(bytes);
        self.messages.started() > 1
    }
}

impl ResponseBody {
    /// What follows this head.
    pub(crate) fn new(
        head: &HeaderMap,
        stream: h2::RecvStream,
        attempt: Attempt,
        limits: Limits,
        timer: Timer,
    ) -> Self {
        let told_us = attempt.pool().now_us();
        let early = orca::rif_of(head).map(|rif| Early { rif, told_us, messages: MessageCounter::default() });
        Self { stream: Some(stream), attempt, limits, timer, last_message: None, data_ended: false, early }
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(stream) = self.stream.as_mut() else { return Poll::Ready(None) };
        if !self.data_ended {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Handed on, and so no longer ours to count.
                    let _ = stream.flow_control().release_capacity(bytes.len());
                    if !bytes.is_empty() {
                        self.limits.flows();
                        self.last_message = Some(Instant::now());
                        self.attempt.spoke();
                        if let Some(early) = self.early.take_if(|early| early.is_streams(&bytes)) {
                            self.attempt.told(early.rif, early.told_us);
                        }
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(&error)))),
                None => self.data_ended = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(Some(self.end(trailers).map(Frame::trailers))),
            Err(error) => Poll::Ready(Some(Err(self.fail(&error)))),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<HeaderMap, Status> {
        self.stream = None;
        let mut trailers = trailers.unwrap_or_default();
        let Some(class) = class_of_headers(&trailers) else {
            self.attempt.end(Class::Endpoint);
            return Err(no_status(&self.attempt.endpoint.address, self.attempt.number));
        };
        self.attempt.end_with(class, &trailers);
        if class != Class::Ok {
            why::annotate(&mut trailers, Some(&self.attempt.endpoint.address), What::Answered, self.attempt.number);
        }
        Ok(trailers)
    }

    fn fail(&mut self, error: &h2::Error) -> Status {
        self.stream = None;
        if let Some(status) = self.attempt.replay().failure().filter(|_| error.is_reset() && !error.is_remote()) {
            self.attempt.end(Class::Cancelled);
            return status;
        }
        let goodbye = self.attempt.goodbye();
        let status = match of_error(error, goodbye, &self.attempt.endpoint.address, self.attempt.number, true) {
            Verdict::Failed(status) | Verdict::Final(status) => status,
            Verdict::Refused(reason) | Verdict::NotProcessed(reason) => Status::unavailable(reason),
        };
        self.attempt.end(class_of(status.code()));
        status
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        loop {
            let Some((at, expired)) = self.limits.due(self.last_message) else { return Poll::Pending };
            ready!(self.timer.poll(at, cx));
            if expired == Expired::DefaultDeadline && self.attempt.replay().messages() >= 2 {
                self.limits.flows();
                self.last_message = Some(Instant::now());
                continue;
            }
            self.stream = None;
            let (code, what, class) = match expired {
                Expired::CallerDeadline | Expired::DefaultDeadline => {
                    (Code::DeadlineExceeded, What::DeadlineExceeded, Class::Deadline)
                }
                Expired::StreamIdle => (Code::DeadlineExceeded, What::StreamIdle, Class::Deadline),
                // Old age is nobody's fault.
                Expired::StreamLife => (Code::Cancelled, What::StreamTooOld, Class::Cancelled),
            };
            let address = self.attempt.endpoint.address.clone();
            self.attempt.end(class);
            let after_ms = self.limits.elapsed().as_millis();
            let message = format!("call to {address} failed: {} after {after_ms} ms", expired.words());
            return Poll::Ready(why::status(code, message, Some(&address), what, self.attempt.number));
        }
    }

    /// A stream that always has more to give would never let its timer be looked at. The other limits are about what does not
    /// come; they can wait until nothing does.
    fn is_overdue(&self) -> bool {
        match self.limits.due(self.last_message) {
            Some((at, Expired::CallerDeadline | Expired::StreamLife)) => at <= Instant::now(),
            Some((_, Expired::DefaultDeadline | Expired::StreamIdle)) | None => false,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.stream.is_none() {
            return Poll::Ready(None);
        }
        let frame = match self.is_overdue() {
            true => Poll::Pending,
            false => self.poll_stream(cx),
        };
        let frame = match frame {
            Poll::Ready(frame) => frame,
            Poll::Pending => Some(Err(ready!(self.poll_limits(cx)))),
        };
        Poll::Ready(frame.map(|f| f.map_err(|status| self.attempt.pool().with_hint(status))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_head_counts_from_the_second_message_on() {
        let mut early = Early { rif: 3, told_us: 1, messages: MessageCounter::default() };
        assert!(!early.is_streams(&[0, 0, 0, 0, 9, 1, 2, 3]));
        assert!(!early.is_streams(&[4, 5, 6, 7, 8, 9]), "one message in two parts");
        assert!(!early.is_streams(&[0, 0]));
        assert!(early.is_streams(&[0, 0, 0]), "the second, and empty");
    }
}
