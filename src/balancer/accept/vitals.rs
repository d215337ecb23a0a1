//! What one connection has open, and since when it has nothing. Every stream is counted from its request to the end of its
//! answer, for the connection and for its peer; one above a cap is refused at once with the advice to come back later.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};

use super::{Turn, ceiling::Inside, peers::Peer};
use crate::{
    convert,
    limits::{OTHER_STREAMS_MAX, PUSHBACK},
};

/// The life of a connection.
#[derive(Debug)]
pub(super) struct Vitals {
    peer: Arc<Peer>,
    streams_of_peer_max: usize,
    asked: AtomicBool,
    open: AtomicUsize,
    /// Open streams that are not of the method that is meant to have many.
    others: AtomicUsize,
    empty_since: Mutex<Instant>,
    /// Until the first request.
    turn: Mutex<Option<Turn>>,
}

impl Vitals {
    pub(super) fn new(peer: &Arc<Peer>, streams_of_peer_max: usize, turn: Turn) -> Arc<Self> {
        Arc::new(Self {
            peer: Arc::clone(peer),
            streams_of_peer_max,
            asked: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            others: AtomicUsize::new(0),
            empty_since: Mutex::new(Instant::now()),
            turn: Mutex::new(Some(turn)),
        })
    }

    /// Counts a stream, or says why there cannot be one more.
    pub(super) fn open(self: &Arc<Self>, is_other: bool, inside: Option<Inside>) -> Result<Open, Status> {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.turn.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        if !self.peer.open(self.streams_of_peer_max) {
            let words = format!("a peer has at most {} streams", self.streams_of_peer_max);
            return Err(later("PEER_STREAMS_MAX", &words));
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let others = if is_other { self.others.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let open = Open { vitals: Arc::clone(self), is_other, _inside: inside };
        if others >= OTHER_STREAMS_MAX {
            let words = format!("a connection has at most {OTHER_STREAMS_MAX} streams beside picks");
            return Err(later("CONNECTION_STREAMS_MAX", &words));
        }
        Ok(open)
    }

    /// Whose connection it is.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether a request has come.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until no request has come by then.
    pub(super) async fn no_request_by(&self, deadline: Instant) {
        sleep_until(deadline).await;
        if self.asked() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until nothing was open for so long.
    pub(super) async fn empty_for(&self, limit: Duration) {
        loop {
            if self.open.load(Ordering::Relaxed) > 0 {
                sleep(limit).await;
                continue;
            }
            let due = *self.empty_since.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// A stream, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    vitals: Arc<Vitals>,
    is_other: bool,
    _inside: Option<Inside>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let vitals = &self.vitals;
        vitals.peer.close();
        if self.is_other {
            vitals.others.fetch_sub(1, Ordering::Relaxed);
        }
        *vitals.empty_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        vitals.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// RESOURCE_EXHAUSTED with the time after which it is worth another try, spread so that those turned away together do not
/// come back together.
pub(crate) fn later(reason: &'static str, words: &str) -> Status {
    let mut status = convert::refused(Code::ResourceExhausted, reason, words, &[]);
    let ms = rand::random_range(PUSHBACK).as_millis();
    if let Ok(value) = ms.to_string().parse() {
        status.metadata_mut().insert("grpc-retry-pushback-ms", value);
    }
    status
}

/// A body that counts as an open stream, and may end before its time.
pub(super) struct Answer {
    body: Body,
    /// A stream of a library of others, which would stay until it is cut.
    ends: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
    _open: Option<Open>,
}

impl Answer {
    /// It ends by itself.
    pub(super) fn new(body: Body, open: Option<Open>) -> Self {
        Self { body, ends: None, ended: false, _open: open }
    }

    /// It is ended by `leaving`, once everything that is ready has been said.
    pub(super) fn ending_with(mut self, leaving: CancellationToken) -> Self {
        self.ends = Some(Box::pin(leaving.cancelled_owned()));
        self
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            return frame;
        }
        let Some(ends) = &mut self.ends else { return Poll::Pending };
        std::task::ready!(ends.as_mut().poll(context));
        self.ended = true;
        let mut trailers = HeaderMap::new();
        let status = Status::unavailable("the connection is to end: open another");
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
