//! A listener with caps: how many connections there may be, and how many of one peer. It goes on when file descriptors run
//! out, and keeps one in reserve by which it can tell peers so.

use std::{fs::File, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use super::{
    count_refused,
    peers::{Peer, Peers, Place},
};

/// Between two attempts while file descriptors are used up: the kernel keeps connections waiting meanwhile.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A listener with caps.
pub(crate) struct Acceptor {
    pub(super) name: &'static str,
    listener: TcpListener,
    slots: Arc<Semaphore>,
    peers: Arc<Peers>,
    per_peer_max: usize,
    /// A file descriptor for the day when there are no others.
    reserve: Option<File>,
    failing: bool,
}

/// A connection below the caps.
pub(crate) struct Accepted {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// What it takes up until it is dropped.
    pub(crate) slot: Slot,
}

/// What a connection takes up.
pub(crate) struct Slot {
    _slot: OwnedSemaphorePermit,
    place: Place,
}

impl Slot {
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.place.peer
    }
}

impl Acceptor {
    /// `name` is what logs and metrics call it.
    pub(crate) fn new(
        name: &'static str,
        listener: TcpListener,
        connections_max: usize,
        connections_per_peer_max: usize,
    ) -> Self {
        Self {
            name,
            listener,
            slots: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            peers: Arc::default(),
            per_peer_max: connections_per_peer_max,
            reserve: reserve(),
            failing: false,
        }
    }

    /// The next connection below the caps. Those above are closed and counted here.
    pub(crate) async fn next(&mut self) -> Accepted {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.failing = false;
                    let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                        count_refused(self.name, "cap");
                        continue;
                    };
                    let Some(place) = self.peers.enter(peer.ip(), self.per_peer_max) else {
                        count_refused(self.name, "peer_cap");
                        continue;
                    };
                    return Accepted { stream, peer, slot: Slot { _slot: slot, place } };
                }
                // The peer gave up while it waited: nothing is wrong here.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !self.failing {
                        tracing::error!(listener = self.name, %error, "cannot accept connections; trying on");
                    }
                    self.failing = true;
                    self.turn_one_away().await;
                }
            }
        }
    }

    /// Without a file descriptor a peer would wait for ever; by the one in reserve it learns that it is to go elsewhere.
    async fn turn_one_away(&mut self) {
        drop(self.reserve.take());
        match timeout(BACK_OFF, self.listener.accept()).await {
            Ok(Ok(turned_away)) => {
                drop(turned_away);
                count_refused(self.name, "file_descriptors");
            }
            Ok(Err(_)) => sleep(BACK_OFF).await,
            Err(_) => {}
        }
        self.reserve = reserve();
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}
