//! The request of one call, sent as often as it takes. Its first bytes are kept until an answer begins, so that a call that was
//! provably not processed can be sent elsewhere; what is longer cannot move. Never buffers for any other reason: the next part
//! is asked of the application only when the stream has room for it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;
use tonic::{Status, body::Body};

use crate::{endpoint::Endpoint, framing::MessageCounter};

/// A request longer than this cannot move once it was begun, bytes.
pub(crate) const KEPT_BYTES_MAX: usize = 64 * 1024;

/// What one call has to say, and where it stands. Shared by its attempts and its response.
#[derive(Debug)]
pub(crate) struct Replay {
    state: Mutex<State>,
    expired: AtomicBool,
}

#[derive(Debug)]
struct State {
    body: Body,
    ended: bool,
    /// Read from the body already, to be sent next.
    ahead: Option<Bytes>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    keep: bool,
    movable: bool,
    /// How many of `kept` the current attempt has sent.
    sent: usize,
    attempt: u32,
    messages: MessageCounter,
    failure: Option<Status>,
    /// Where the call waits for an answer, and how many endpoints were tried, that one included.
    at: Option<(Arc<Endpoint>, u32)>,
}

enum Next {
    Data(Bytes, bool),
    End,
    Failed,
    /// Another attempt has begun.
    Stale,
}

impl Replay {
    pub(crate) fn new(body: Body) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                body,
                ended: false,
                ahead: None,
                kept: Vec::new(),
                kept_bytes: 0,
                keep: true,
                movable: true,
                sent: 0,
                attempt: 0,
                messages: MessageCounter::default(),
                failure: None,
                at: None,
            }),
            expired: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt: whoever sends from now on starts with the first byte.
    pub(crate) fn pump(self: &Arc<Self>, stream: SendStream<Bytes>) -> Pump {
        let mut state = self.state();
        state.attempt += 1;
        state.sent = 0;
        Pump { stream, replay: self.clone(), attempt: state.attempt, done: false }
    }

    /// Notes which endpoint the call waits for.
    pub(crate) fn now_at(&self, at: Option<(Arc<Endpoint>, u32)>) {
        self.state().at = at;
    }

    pub(crate) fn at(&self) -> Option<(Arc<Endpoint>, u32)> {
        self.state().at.clone()
    }

    /// Whether the call could be sent again from its first byte.
    pub(crate) fn is_movable(&self) -> bool {
        self.state().movable
    }

    /// An answer has begun: nothing need be kept any more.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        state.keep = false;
        state.movable = false;
        state.drop_sent();
    }

    /// Messages the application has sent, as far as they were read.
    pub(crate) fn messages(&self) -> u64 {
        self.state().messages.started()
    }

    /// What the application's own request stream failed with.
    pub(crate) fn failure(&self) -> Option<Status> {
        self.state().failure.clone()
    }

    /// Its time ran out: whatever is dropped from now on ended by that.
    pub(crate) fn expire(&self) {
        self.expired.store(true, Relaxed);
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Relaxed)
    }

    fn poll_next(&self, attempt: u32, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state();
        if state.attempt != attempt {
            return Poll::Ready(Next::Stale);
        }
        if let Some(bytes) = state.kept.get(state.sent).cloned() {
            state.sent += 1;
            let last = state.is_last() && state.sent == state.kept.len();
            return Poll::Ready(Next::Data(bytes, last));
        }
        let bytes = match state.ahead.take() {
            Some(bytes) => bytes,
            None if state.failure.is_some() => return Poll::Ready(Next::Failed),
            None if state.ended => return Poll::Ready(Next::End),
            None => match ready!(state.poll_body(cx)) {
                Some(bytes) => bytes,
                None if state.failure.is_some() => return Poll::Ready(Next::Failed),
                None => return Poll::Ready(Next::End),
            },
        };
        // A look ahead, so that the last part carries the end with it: a unary call is then one frame.
        if !state.ended
            && let Poll::Ready(ahead) = state.poll_body(cx)
        {
            state.ahead = ahead;
        }
        state.keep(&bytes);
        let last = state.is_last();
        Poll::Ready(Next::Data(bytes, last))
    }
}

impl State {
    /// What was read last is the end of the request. A request that failed has no end: it must never look complete.
    fn is_last(&self) -> bool {
        self.ended && self.ahead.is_none() && self.failure.is_none()
    }

    /// The next bytes from the application; `None` at the end, and when it failed.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => {
                        self.messages.feed(&bytes);
                        return Poll::Ready(Some(bytes));
                    }
                    // gRPC requests have no trailers.
                    Err(_) => {}
                },
                Some(Err(status)) => {
                    self.failure = Some(status);
                    self.ended = true;
                    return Poll::Ready(None);
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn keep(&mut self, bytes: &Bytes) {
        if !self.keep {
            self.drop_sent();
            return;
        }
        self.kept_bytes += bytes.len();
        if self.kept_bytes > KEPT_BYTES_MAX {
            self.keep = false;
            self.movable = false;
            self.drop_sent();
            return;
        }
        self.kept.push(bytes.clone());
        self.sent = self.kept.len();
    }

    fn drop_sent(&mut self) {
        if self.sent >= self.kept.len() {
            self.kept.clear();
            self.sent = 0;
        }
    }
}

/// Sends the request of one attempt; done when it is sent, or when nobody wants the rest.
#[derive(Debug)]
pub(crate) struct Pump {
    stream: SendStream<Bytes>,
    replay: Arc<Replay>,
    attempt: u32,
    done: bool,
}

impl Drop for Pump {
    /// A request that nobody goes on sending, be it that the application's stream panicked, must not leave the endpoint waiting.
    fn drop(&mut self) {
        if !self.done {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.send(cx));
        self.done = true;
        Poll::Ready(())
    }
}

impl Pump {
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let me = self;
        loop {
            me.stream.reserve_capacity(1);
            if me.stream.capacity() == 0 {
                match ready!(me.stream.poll_capacity(cx)) {
                    Some(Ok(0)) => continue,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            } else if me.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            let (bytes, last) = match ready!(me.replay.poll_next(me.attempt, cx)) {
                Next::Data(bytes, last) => (bytes, last),
                Next::End => (Bytes::new(), true),
                Next::Failed => {
                    me.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                Next::Stale => return Poll::Ready(()),
            };
            if me.stream.send_data(bytes, last).is_err() || last {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn body(parts: Vec<Result<&'static [u8], Status>>) -> Body {
        let frames = parts.into_iter().map(|p| p.map(|b| Frame::data(Bytes::from_static(b))));
        Body::new(StreamBody::new(stream::iter(frames).boxed()))
    }

    /// All that the next attempt would send; whether it ended in failure.
    fn drain(replay: &Arc<Replay>) -> (Vec<u8>, bool) {
        let attempt = {
            let mut state = replay.state();
            state.attempt += 1;
            state.sent = 0;
            state.attempt
        };
        let mut all = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..100 {
            match replay.poll_next(attempt, &mut cx) {
                Poll::Ready(Next::Data(bytes, last)) => {
                    all.extend_from_slice(&bytes);
                    if last {
                        return (all, false);
                    }
                }
                Poll::Ready(Next::End) => return (all, false),
                Poll::Ready(Next::Failed) => return (all, true),
                Poll::Ready(Next::Stale) | Poll::Pending => panic!("neither stale nor pending"),
            }
        }
        panic!("no end");
    }

    #[test]
    fn a_second_attempt_sends_the_same_bytes() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b""), Ok(b"two"), Ok(b"three")]));
        assert_eq!(drain(&replay), (b"onetwothree".to_vec(), false));
        assert!(replay.is_movable());
        assert_eq!(drain(&replay), (b"onetwothree".to_vec(), false));
    }

    #[test]
    fn a_second_attempt_continues_where_the_first_was_cut() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two"), Ok(b"three")]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        replay.state().attempt = 1;
        assert!(matches!(replay.poll_next(1, &mut cx), Poll::Ready(Next::Data(_, false))));
        assert_eq!(drain(&replay).0, b"onetwothree");
        assert!(matches!(replay.poll_next(1, &mut cx), Poll::Ready(Next::Stale)));
    }

    #[test]
    fn a_long_request_cannot_move_and_keeps_nothing() {
        static LONG: [u8; KEPT_BYTES_MAX] = [7; KEPT_BYTES_MAX];
        let replay = Replay::new(body(vec![Ok(&LONG), Ok(b"x")]));
        assert_eq!(drain(&replay).0.len(), KEPT_BYTES_MAX + 1);
        assert!(!replay.is_movable());
        assert!(replay.state().kept.is_empty());
    }

    #[test]
    fn nothing_is_kept_once_an_answer_has_begun() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two")]));
        drain(&replay);
        replay.settle();
        assert!(!replay.is_movable() && replay.state().kept.is_empty());
    }

    #[test]
    fn the_applications_own_failure_is_kept_for_the_caller() {
        let replay = Replay::new(body(vec![Ok(b"one"), Err(Status::aborted("mine"))]));
        assert_eq!(drain(&replay), (b"one".to_vec(), true));
        assert_eq!(drain(&replay), (b"one".to_vec(), true), "a further attempt does not make it look complete");
        assert_eq!(replay.failure().map(|s| s.code()), Some(tonic::Code::Aborted));
    }
}
