//! One endpoint: its connections and their keeper. The keeper connects, reconnects, and adds a connection when the peer takes no
//! more streams on those there are. Which endpoints deserve a keeper is for `pool` to say.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Tls,
    backoff::{Backoff, RECONNECT_FIRST, RECONNECT_LONGEST},
    connection::{ConnectError, Connection, Goodbye, Slot},
    list::Listed,
    picker::Peer,
    pool::Pool,
    probe::Probed,
    tally::Tally,
};

/// Connections to one endpoint at most; beyond their streams calls wait.
const CONNECTIONS_MAX: usize = 4;
/// A connection that lived shorter than this was no success: the wait before the next one keeps growing.
const LIFE_OF_A_SUCCESS: Duration = Duration::from_secs(1);

/// Where an endpoint's connections stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    Idle,
    /// The first attempt is under way.
    Connecting,
    Ready,
    /// Lost, or could not be made, for this reason; being tried again.
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Arc<str>,
    pub(crate) authority: http::uri::Authority,
    pub(crate) incarnation: u64,
    tls: Option<Tls>,
    /// The name it has to show; empty means the host of its address.
    pub(crate) tls_name: String,
    pub(crate) peer: Arc<Peer>,
    pub(crate) tally: Tally,
    pub(crate) probed: Probed,
    connections: ArcSwap<Vec<Arc<Connection>>>,
    link: Mutex<Link>,
    keeper: Mutex<Option<CancellationToken>>,
    room: Notify,
    more: Notify,
    lost: Notify,
}

impl Endpoint {
    /// `None` when the address cannot stand in a URI.
    pub(crate) fn new(listed: &Listed, tls: Option<&Tls>, id: u64) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            address: listed.address.as_str().into(),
            authority: listed.address.parse().ok()?,
            incarnation: listed.incarnation,
            tls: tls.cloned(),
            tls_name: listed.tls_name.clone(),
            peer: Arc::new(Peer::new(id)),
            tally: Tally::default(),
            probed: Probed::default(),
            connections: ArcSwap::default(),
            link: Mutex::new(Link::Idle),
            keeper: Mutex::new(None),
            room: Notify::new(),
            more: Notify::new(),
            lost: Notify::new(),
        }))
    }

    /// What calls name as their scheme.
    pub(crate) fn scheme(&self) -> http::uri::Scheme {
        if self.tls.is_some() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP }
    }

    /// Whether a list that says this speaks of this endpoint: not of another process, nor of one that is to show another name.
    pub(crate) fn is_meant_by(&self, listed: &Listed) -> bool {
        let same_process = self.incarnation == listed.incarnation || self.incarnation == 0 || listed.incarnation == 0;
        same_process && (self.tls.is_none() || self.tls_name == listed.tls_name)
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.connections.load().is_empty()
    }

    pub(crate) fn link(&self) -> Link {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_link(&self, link: Link) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Starts the keeper unless it runs.
    pub(crate) fn start(self: &Arc<Self>, pool: &Weak<Pool>, connect_timeout: Duration, seed: u64) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.is_some() {
            return;
        }
        let stop = CancellationToken::new();
        *keeper = Some(stop.clone());
        self.set_link(Link::Connecting);
        tokio::spawn(keep(self.clone(), pool.clone(), connect_timeout, seed, stop));
    }

    /// Ends the keeper and lets the connections go; calls in flight finish.
    pub(crate) fn stop(&self) {
        // Held to the end: what is admitted meanwhile would stay.
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stop) = keeper.take() else { return };
        stop.cancel();
        self.set_link(Link::Idle);
        for connection in self.connections.swap(Arc::default()).iter() {
            connection.retire();
        }
        drop(keeper);
        self.room.notify_waiters();
    }

    /// Room for a call on one of the connections, waiting for it if need be. `Err` when the connections were lost meanwhile:
    /// nothing was sent.
    pub(crate) async fn slot(self: &Arc<Self>) -> Result<Seat, String> {
        if let Some(slot) = self.free_slot() {
            return Ok(Seat::new(slot, self));
        }
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Enlisted before looking, so that room made in between is not missed.
            room.as_mut().enable();
            if !self.is_ready() {
                return Err(match self.link() {
                    Link::Failed(reason) => reason,
                    Link::Idle | Link::Connecting | Link::Ready => "the connection is gone".to_owned(),
                });
            }
            if let Some(slot) = self.free_slot() {
                return Ok(Seat::new(slot, self));
            }
            self.more.notify_one();
            room.await;
        }
    }

    /// Room that no call will miss, at once or not at all.
    pub(crate) fn spare_seat(self: &Arc<Self>) -> Option<Seat> {
        self.connections.load().iter().find_map(Connection::spare_slot).map(|slot| Seat::new(slot, self))
    }

    fn free_slot(&self) -> Option<Slot> {
        self.connections.load().iter().find_map(Connection::slot)
    }

    fn admit(&self, connection: Arc<Connection>, stop: &CancellationToken) -> bool {
        let _order = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.is_cancelled() || connection.goodbye().is_some() {
            connection.retire();
            return false;
        }
        self.connections.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push(connection.clone());
            all
        });
        self.set_link(Link::Ready);
        self.peer.revive();
        self.probed.forget();
        self.room.notify_waiters();
        true
    }

    /// A connection takes no further calls. In the same instant none is sent to it.
    fn dismiss(&self, gone: &Arc<Connection>, pool: &Weak<Pool>) {
        let order = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let before =
            self.connections.rcu(|all| all.iter().filter(|c| !Arc::ptr_eq(c, gone)).cloned().collect::<Vec<_>>());
        let was_in_use = before.iter().any(|c| Arc::ptr_eq(c, gone));
        let fallback = Goodbye { graceful: false, reason: String::new() };
        let goodbye = gone.goodbye().unwrap_or(&fallback);
        if was_in_use && !self.is_ready() {
            self.set_link(Link::Failed(goodbye.reason.clone()));
        }
        drop(order);
        if was_in_use && !goodbye.graceful {
            self.complain(format!("connection lost: {}", goodbye.reason), pool);
        }
        self.room.notify_waiters();
        self.lost.notify_one();
        if let Some(pool) = pool.upgrade().filter(|_| was_in_use) {
            pool.rebuild();
        }
    }

    fn complain(&self, detail: String, pool: &Weak<Pool>) {
        self.tally.connect_failed();
        self.tally.suspect(detail);
        if let Some(pool) = pool.upgrade() {
            pool.alarm();
        }
    }
}

/// Room for one call. Dropped field by field: the stream is free before whoever waits for one is told.
#[derive(Debug)]
pub(crate) struct Seat {
    slot: Slot,
    _freed: Freed,
}

impl Seat {
    fn new(slot: Slot, endpoint: &Arc<Endpoint>) -> Self {
        Self { slot, _freed: Freed(endpoint.clone()) }
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }
}

#[derive(Debug)]
struct Freed(Arc<Endpoint>);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.room.notify_one();
    }
}

/// Keeps the endpoint connected until stopped.
async fn keep(
    endpoint: Arc<Endpoint>,
    pool: Weak<Pool>,
    connect_timeout: Duration,
    seed: u64,
    stop: CancellationToken,
) {
    let work = async {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST, seed);
        let mut connected_at = None::<Instant>;
        loop {
            let count = endpoint.connections.load().len();
            if count > 0 {
                tokio::select! {
                    () = endpoint.lost.notified() => continue,
                    () = endpoint.more.notified() => {}
                }
                // Asked for more: perhaps room was made meanwhile, or there are enough already.
                if count >= CONNECTIONS_MAX || endpoint.free_slot().is_some() {
                    continue;
                }
            } else if let Some(at) = connected_at.take() {
                if at.elapsed() >= LIFE_OF_A_SUCCESS {
                    backoff.reset();
                } else {
                    tokio::time::sleep(backoff.next()).await;
                }
            }
            let (weak, told) = (Arc::downgrade(&endpoint), pool.clone());
            let tls = endpoint.tls.as_ref().map(|tls| (tls, endpoint.tls_name.as_str()));
            let opened = Connection::open(&endpoint.address, tls, connect_timeout, move |gone| {
                if let Some(endpoint) = weak.upgrade() {
                    endpoint.dismiss(gone, &told);
                }
            })
            .await;
            match opened {
                Ok(connection) => {
                    connected_at = Some(Instant::now());
                    if endpoint.admit(connection, &stop)
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.rebuild();
                    }
                }
                Err(error) => {
                    if !endpoint.is_ready() {
                        endpoint.set_link(Link::Failed(error.to_string()));
                        endpoint.complain(format!("cannot connect: {error}"), &pool);
                        if let Some(pool) = pool.upgrade() {
                            pool.rebuild();
                        }
                    }
                    // Who is somebody else will hardly be the right one in a moment.
                    let is_somebody_else = matches!(error, ConnectError::Identity(_));
                    let wait = if is_somebody_else { RECONNECT_LONGEST } else { backoff.next() };
                    tokio::time::sleep(wait).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
