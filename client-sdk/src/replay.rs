//! The request of one call, sent as often as it takes. Its first bytes are kept until an answer begins, so that a call can be
//! sent elsewhere; what is longer cannot. Never buffers for any other reason: the next part is asked of the application only
//! when the stream has room for it.
//!
//! Attempts come one after another, and the newest alone reads on from the application. Only a request that is kept whole may
//! be sent by two at once.

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

use crate::framing::MessageCounter;

/// A request longer than this cannot move once it was begun, bytes.
pub(crate) const KEPT_BYTES_MAX: usize = 64 * 1024;

/// No attempt: they are counted from 1.
const NOBODY: u32 = 0;

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
    /// How many were begun.
    attempts: u32,
    /// The one that reads from the application: the newest, and once an answer has begun, the one it belongs to. Nobody
    /// before the first, and between two.
    reader: u32,
    /// The one that has sent all that is kept, and reads on from the application.
    reads_on: u32,
    messages: MessageCounter,
    failure: Option<Status>,
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
                attempts: 0,
                reader: NOBODY,
                reads_on: NOBODY,
                messages: MessageCounter::default(),
                failure: None,
            }),
            expired: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt: it starts with the first byte. Any but the first follows a [`Replay::take_back`] that succeeded.
    pub(crate) fn pump(self: &Arc<Self>, stream: SendStream<Bytes>) -> Pump {
        Pump { stream, replay: self.clone(), attempt: self.begin(), sent: 0, done: false }
    }

    fn begin(&self) -> u32 {
        let mut state = self.state();
        state.attempts += 1;
        state.reader = state.attempts;
        state.reader
    }

    /// The attempts so far have come to nothing. Whether the call can be sent again from its first byte; if so, it stays so
    /// until the next attempt begins: none of those before reads on, though its task may still be at work.
    pub(crate) fn take_back(&self) -> bool {
        let mut state = self.state();
        if state.movable {
            state.reader = NOBODY;
        }
        state.movable
    }

    /// Whether the whole of the request is kept: it could be sent by two attempts at once.
    pub(crate) fn is_complete(&self) -> bool {
        let state = self.state();
        state.movable && state.is_last()
    }

    /// An answer to this attempt has begun: nothing need be kept any more but what it has not sent yet.
    pub(crate) fn settle(&self, attempt: u32, is_sent: bool) {
        let mut state = self.state();
        state.keep = false;
        state.movable = false;
        state.reader = attempt;
        if is_sent || state.reads_on == attempt {
            // It may wait for the application for as long as the stream lives.
            state.kept.clear();
        }
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

    /// The next part for this attempt, which has sent so many of those kept.
    fn poll_next(&self, attempt: u32, sent: &mut usize, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state();
        if let Some(bytes) = state.kept.get(*sent).cloned() {
            *sent += 1;
            let all = *sent == state.kept.len();
            let last = all && state.is_last();
            if all && !state.keep && state.reader == attempt {
                state.kept.clear();
                *sent = 0;
            }
            return Poll::Ready(Next::Data(bytes, last));
        }
        if state.keep && state.is_last() {
            // All is kept, and all that is kept was sent.
            return Poll::Ready(Next::End);
        }
        if state.reader != attempt {
            return Poll::Ready(Next::Stale);
        }
        state.reads_on = attempt;
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
        *sent = state.kept.len();
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
            return;
        }
        self.kept_bytes += bytes.len();
        if self.kept_bytes > KEPT_BYTES_MAX {
            // Whoever reads from the application has sent all that was kept.
            self.keep = false;
            self.movable = false;
            self.kept.clear();
            return;
        }
        self.kept.push(bytes.clone());
    }
}

/// Sends the request of one attempt; done when it is sent, or when nobody wants the rest.
#[derive(Debug)]
pub(crate) struct Pump {
    stream: SendStream<Bytes>,
    replay: Arc<Replay>,
    attempt: u32,
    /// How many of the parts kept it has sent.
    sent: usize,
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
    /// Which attempt of the request it sends.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

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
            let (bytes, last) = match ready!(me.replay.poll_next(me.attempt, &mut me.sent, cx)) {
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
        let (attempt, mut sent) = (replay.begin(), 0);
        let mut all = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..100 {
            match replay.poll_next(attempt, &mut sent, &mut cx) {
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
        assert!(replay.take_back());
        assert_eq!(drain(&replay), (b"onetwothree".to_vec(), false));
    }

    #[test]
    fn a_second_attempt_continues_where_the_first_was_cut() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two"), Ok(b"three")]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (first, mut sent) = (replay.begin(), 0);
        assert!(matches!(replay.poll_next(first, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        replay.begin();
        assert!(matches!(replay.poll_next(first, &mut sent, &mut cx), Poll::Ready(Next::Stale)));
        assert_eq!(drain(&replay).0, b"onetwothree");
    }

    #[test]
    fn a_request_that_is_taken_back_is_read_on_by_the_next_attempt_alone() {
        static HALF: [u8; KEPT_BYTES_MAX / 2] = [7; KEPT_BYTES_MAX / 2];
        let replay = Replay::new(body(vec![Ok(&HALF), Ok(&HALF), Ok(b"too much")]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (first, mut sent) = (replay.begin(), 0);
        assert!(matches!(replay.poll_next(first, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        assert!(replay.take_back());
        // Its task was told to stop, and has not heard yet.
        for _ in 0..3 {
            assert!(matches!(replay.poll_next(first, &mut sent, &mut cx), Poll::Ready(Next::Stale)));
        }
        assert_eq!(drain(&replay).0.len(), KEPT_BYTES_MAX + "too much".len(), "nothing is missing at its beginning");
        assert!(!replay.take_back());
    }

    #[test]
    fn a_request_kept_whole_is_sent_by_two_at_once_and_one_that_is_not_by_the_newest_alone() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two"), Ok(b"three")]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(!replay.is_complete(), "nothing is read yet");
        assert_eq!(drain(&replay).0, b"onetwothree");
        assert!(replay.is_complete());
        let (slow, mut sent) = (replay.begin(), 0);
        assert!(matches!(replay.poll_next(slow, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        assert_eq!(drain(&replay).0, b"onetwothree");
        assert!(matches!(replay.poll_next(slow, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        // The newest was answered: the request of the other must not look complete to its endpoint.
        replay.settle(slow + 1, true);
        assert!(matches!(replay.poll_next(slow, &mut sent, &mut cx), Poll::Ready(Next::Stale)));
    }

    #[test]
    fn whoever_is_answered_sends_the_rest_of_what_is_kept() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two")]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        drain(&replay);
        let (slow, mut sent) = (replay.begin(), 0);
        assert!(matches!(replay.poll_next(slow, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        drain(&replay);
        replay.settle(slow, false);
        assert!(matches!(replay.poll_next(slow, &mut sent, &mut cx), Poll::Ready(Next::Data(_, true))));
        assert!(replay.state().kept.is_empty());
    }

    #[test]
    fn an_empty_request_ends_for_each_of_its_attempts() {
        let replay = Replay::new(body(vec![]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(drain(&replay), (Vec::new(), false));
        let first = replay.begin();
        replay.begin();
        assert!(matches!(replay.poll_next(first, &mut 0, &mut cx), Poll::Ready(Next::End)));
    }

    #[test]
    fn a_long_request_cannot_move_and_keeps_nothing() {
        static LONG: [u8; KEPT_BYTES_MAX] = [7; KEPT_BYTES_MAX];
        let replay = Replay::new(body(vec![Ok(&LONG), Ok(b"x")]));
        assert_eq!(drain(&replay).0.len(), KEPT_BYTES_MAX + 1);
        assert!(!replay.take_back());
        assert!(replay.state().kept.is_empty());
    }

    #[test]
    fn nothing_is_kept_once_an_answer_has_begun() {
        let replay = Replay::new(body(vec![Ok(b"one"), Ok(b"two")]));
        drain(&replay);
        replay.settle(1, true);
        assert!(!replay.take_back() && replay.state().kept.is_empty());
    }

    #[test]
    fn nothing_is_kept_by_a_stream_that_goes_on_after_its_answer_has_begun() {
        let parts = [Ok(Frame::data(Bytes::from_static(b"one")))];
        let replay = Replay::new(Body::new(StreamBody::new(
            stream::iter(parts).chain(stream::pending::<Result<_, Status>>()).boxed(),
        )));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (first, mut sent) = (replay.begin(), 0);
        assert!(matches!(replay.poll_next(first, &mut sent, &mut cx), Poll::Ready(Next::Data(_, false))));
        assert!(replay.poll_next(first, &mut sent, &mut cx).is_pending());
        replay.settle(first, false);
        assert!(replay.state().kept.is_empty());
        assert!(replay.poll_next(first, &mut sent, &mut cx).is_pending(), "it goes on where it was");
    }

    #[test]
    fn the_applications_own_failure_is_kept_for_the_caller() {
        let replay = Replay::new(body(vec![Ok(b"one"), Err(Status::aborted("mine"))]));
        assert_eq!(drain(&replay), (b"one".to_vec(), true));
        assert_eq!(drain(&replay), (b"one".to_vec(), true), "a further attempt does not make it look complete");
        assert_eq!(replay.failure().map(|s| s.code()), Some(tonic::Code::Aborted));
    }
}
