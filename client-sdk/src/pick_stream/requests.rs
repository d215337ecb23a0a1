//! What a pick stream is to carry to the balancer. Outcomes are taken at the moment the transport has room for them and never
//! wait in a queue, so that a stream that breaks takes along nothing but what was on the wire already.

use std::sync::{Arc, Mutex, PoisonError};

use lookaside_proto::v1::{Outcomes, PickRequest, pick_request};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

use crate::pool::Pool;

/// Requests that may wait for a slow balancer; beyond that the stream is given up.
const REQUESTS_WAITING_MAX: usize = 64;

enum Said {
    Kind(pick_request::Kind),
    /// Whatever calls have come to by now.
    Outcomes,
}

/// The way to the balancer.
pub(super) struct Requests {
    queue: mpsc::Sender<Said>,
    /// Since when outcomes have been waiting for room.
    asked: Arc<Mutex<Option<Instant>>>,
}

/// A way to the balancer, and the requests as the transport takes them.
pub(super) fn queue(pool: &Arc<Pool>) -> (Requests, impl Stream<Item = PickRequest> + Send + 'static) {
    let (queue, waiting) = mpsc::channel(REQUESTS_WAITING_MAX);
    let asked = Arc::new(Mutex::new(None));
    let (pool, taken) = (Arc::downgrade(pool), Arc::clone(&asked));
    let outgoing = ReceiverStream::new(waiting).filter_map(move |said| {
        let kind = match said {
            Said::Kind(kind) => kind,
            Said::Outcomes => {
                *taken.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let pool = pool.upgrade()?;
                let endpoints = pool.take_outcomes();
                if endpoints.is_empty() {
                    return None;
                }
                pick_request::Kind::Outcomes(Outcomes { service: pool.service.clone(), endpoints })
            }
        };
        Some(PickRequest { kind: Some(kind) })
    });
    (Requests { queue, asked }, outgoing)
}

impl Requests {
    /// False when there is no room: the balancer does not read.
    pub(super) fn say(&self, kind: pick_request::Kind) -> bool {
        self.queue.try_send(Said::Kind(kind)).is_ok()
    }

    /// Tells how calls ended as soon as there is room. Since when an earlier word has been waiting for that, if one has.
    pub(super) fn tell_outcomes(&self) -> Option<Instant> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_none() && self.queue.try_send(Said::Outcomes).is_ok() {
            *asked = Some(Instant::now());
            return None;
        }
        *asked
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{list::List, picker::Class, snapshot::ListSource};

    #[tokio::test]
    async fn outcomes_are_taken_when_there_is_room_and_stay_when_the_stream_breaks() {
        let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(1), 1);
        pool.apply(List::plain(&["127.0.0.1:1".to_owned()]), ListSource::Static, None);
        let endpoint = pool.endpoints().remove(0);
        endpoint.tally.count(Class::Ok, 1);
        let (requests, outgoing) = queue(&pool);
        assert_eq!(requests.tell_outcomes(), None);
        assert!(requests.tell_outcomes().is_some(), "one word waits, and is enough");
        endpoint.tally.count(Class::Ok, 1);
        drop(outgoing);
        // The stream broke before anything was read: the next one tells all of it.
        let (requests, outgoing) = queue(&pool);
        requests.tell_outcomes();
        let mut outgoing = std::pin::pin!(outgoing);
        let told = outgoing.next().await.and_then(|request| request.kind);
        let Some(pick_request::Kind::Outcomes(told)) = told else { panic!("{told:?}") };
        assert_eq!(told.endpoints.iter().map(|e| e.ok).sum::<u64>(), 2);
        assert_eq!(requests.tell_outcomes(), None, "there is room again");
        pool.close();
    }
}
