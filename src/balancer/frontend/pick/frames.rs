//! What goes out on a stream: frames that are shared between streams, and a status at the end. One waits at a time: what is
//! not on its way yet is better decided later.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tonic::Status;

/// Both ends of an empty stream.
pub(super) fn frames() -> (Outlet, Frames) {
    let place = Arc::new(Mutex::new(Place::default()));
    (Outlet(Arc::clone(&place)), Frames { place, ended: false })
}

#[derive(Default)]
struct Place {
    waiting: Option<Waiting>,
    /// Who waits for something to send, and who waits for room.
    sender: Option<Waker>,
    speaker: Option<Waker>,
}

enum Waiting {
    Frame(Bytes),
    End(Box<Status>),
}

/// Where frames are put.
pub(super) struct Outlet(Arc<Mutex<Place>>);

impl Outlet {
    /// Waits until the last frame is on its way.
    pub(super) async fn room(&self) {
        poll_fn(|context| {
            let mut place = lock(&self.0);
            if place.waiting.is_none() {
                return Poll::Ready(());
            }
            place.speaker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Puts a frame there; without room it takes the place of the last one.
    pub(super) fn put(&self, frame: Bytes) {
        self.set(Waiting::Frame(frame));
    }

    /// The last thing.
    pub(super) fn end(&self, status: Status) {
        self.set(Waiting::End(Box::new(status)));
    }

    fn set(&self, waiting: Waiting) {
        let mut place = lock(&self.0);
        place.waiting = Some(waiting);
        if let Some(sender) = place.sender.take() {
            sender.wake();
        }
    }
}

/// The body of a response.
pub(super) struct Frames {
    place: Arc<Mutex<Place>>,
    ended: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut place = lock(&self.place);
        let waiting = place.waiting.take();
        if waiting.is_some()
            && let Some(speaker) = place.speaker.take()
        {
            speaker.wake();
        }
        match waiting {
            None => {
                place.sender = Some(context.waker().clone());
                Poll::Pending
            }
            Some(Waiting::Frame(frame)) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Waiting::End(status)) => {
                drop(place);
                self.ended = true;
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}
