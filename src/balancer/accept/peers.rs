//! What each peer has: connections, handshakes under way, streams. A peer is an IPv4 address or an IPv6 network of 64
//! bits, since whoever has one address of such a network has them all. It is forgotten with its last connection.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Semaphore;

use crate::limits::HANDSHAKES_PER_PEER_MAX;

/// All peers of a listener.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<BTreeMap<IpAddr, (Arc<Peer>, usize)>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Those above the cap wait here for the peer's own others, and for nobody else's.
    pub(super) handshakes: Arc<Semaphore>,
    streams: AtomicUsize,
}

/// One connection of a peer, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    peers: Arc<Peers>,
    key: IpAddr,
    pub(super) peer: Arc<Peer>,
}

impl Peers {
    /// A place for one more connection, if the peer has fewer than `max`.
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr, max: usize) -> Option<Place> {
        let key = key(ip);
        let mut peers = self.lock();
        let (peer, connections) = peers.entry(key).or_insert_with(|| {
            let handshakes = Arc::new(Semaphore::new(HANDSHAKES_PER_PEER_MAX));
            (Arc::new(Peer { handshakes, streams: AtomicUsize::new(0) }), 0)
        });
        if *connections >= max {
            return None;
        }
        *connections += 1;
        Some(Place { peers: Arc::clone(self), key, peer: Arc::clone(peer) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, (Arc<Peer>, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Counts one more stream; false when the peer has `max` already, and nothing was counted.
    pub(super) fn open(&self, max: usize) -> bool {
        self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < max).then_some(open + 1)).is_ok()
    }

    /// One stream less.
    pub(super) fn close(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some((_, connections)) = peers.get_mut(&self.key) {
            *connections -= 1;
            if *connections == 0 {
                peers.remove(&self.key);
            }
        }
    }
}

fn key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_at_its_cap_has_no_place_and_others_have() {
        let peers = Arc::new(Peers::default());
        let first = peers.enter(ip("10.0.0.1"), 2).unwrap();
        let _second = peers.enter(ip("::ffff:10.0.0.1"), 2).unwrap();
        assert!(peers.enter(ip("10.0.0.1"), 2).is_none());
        assert!(peers.enter(ip("10.0.0.2"), 2).is_some());
        drop(first);
        assert!(peers.enter(ip("10.0.0.1"), 2).is_some());
    }

    #[test]
    fn the_addresses_of_one_network_are_one_peer_in_ipv6() {
        let peers = Arc::new(Peers::default());
        let _place = peers.enter(ip("2001:db8::1"), 1).unwrap();
        assert!(peers.enter(ip("2001:db8::ffff:2"), 1).is_none());
        assert!(peers.enter(ip("2001:db8:0:1::1"), 1).is_some());
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let peers = Arc::new(Peers::default());
        for n in 0..=255 {
            drop(peers.enter(IpAddr::from([10, 0, 0, n]), 1));
        }
        assert!(peers.lock().is_empty());
    }

    #[test]
    fn streams_are_counted_over_all_connections_of_a_peer() {
        let peers = Arc::new(Peers::default());
        let (one, two) = (peers.enter(ip("10.0.0.1"), 2).unwrap(), peers.enter(ip("10.0.0.1"), 2).unwrap());
        assert!(one.peer.open(2) && two.peer.open(2) && !one.peer.open(2));
        two.peer.close();
        assert!(one.peer.open(2));
    }
}
