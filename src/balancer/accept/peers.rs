//! What each peer has: connections, handshakes under way, streams and what they carry. A peer is an IPv4 address or an IPv6 network of 64
//! bits, since whoever has one address of such a network has them all. It is forgotten with its last connection.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use lookaside_core::model;
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
    streams: Counted,
    /// Counted by whoever serves its streams.
    pub(super) subscriptions: Counted,
    pub(super) registrations: Counted,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_PER_PEER_MAX)),
            streams: Counted::default(),
            subscriptions: Counted::default(),
            registrations: Counted::default(),
        }
    }
}

/// How many there are of something.
#[derive(Debug, Default)]
pub(super) struct Counted(AtomicUsize);

impl Counted {
    pub(super) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts so many more; false when there would be more than `max`, and nothing was counted.
    pub(super) fn add(&self, more: usize, max: usize) -> bool {
        let add = |count: usize| count.checked_add(more).filter(|sum| *sum <= max);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// So many fewer.
    pub(super) fn take(&self, fewer: usize) {
        self.0.fetch_sub(fewer, Ordering::Relaxed);
    }
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
        let (peer, connections) = peers.entry(key).or_default();
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
        self.streams.add(1, max)
    }

    /// One stream less.
    pub(super) fn close(&self) {
        self.streams.take(1);
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

/// The same as a number, by which clients of one peer know each other in the core. No IPv6 network that is in use is as small
/// as an IPv4 address.
pub(crate) fn number(ip: IpAddr) -> model::Peer {
    model::Peer(match key(ip) {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    })
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
        assert_eq!(number(ip("2001:db8::1")), number(ip("2001:db8::ffff:2")));
        assert_ne!(number(ip("2001:db8::1")), number(ip("2001:db8:0:1::1")));
        assert_eq!(number(ip("::ffff:10.0.0.1")), number(ip("10.0.0.1")));
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

    #[test]
    fn there_is_an_end_to_what_one_peer_may_subscribe_on_all_its_connections() {
        use crate::{
            accept::Connection,
            limits::{PEER_SUBSCRIPTIONS_PER_STREAM, SUBSCRIPTIONS_PER_CONNECTION_MAX as OF_ONE},
        };
        let peer = Arc::new(Peer::default());
        let streams = 2 * OF_ONE / PEER_SUBSCRIPTIONS_PER_STREAM;
        let connect = |peer| Connection::new(Default::default(), peer, streams);
        let [one, two, three] = [&peer; 3].map(connect);
        for connection in [&one, &two] {
            assert_eq!((0..).take_while(|_| connection.subscribe(OF_ONE)).count(), OF_ONE);
        }
        assert!(!three.subscribe(OF_ONE));
        one.unsubscribe(1);
        assert!(three.subscribe(OF_ONE) && !three.subscribe(OF_ONE));
        assert!(!one.subscribe(OF_ONE), "it is the peer that has no room");
        assert!(connect(&Arc::default()).subscribe(OF_ONE), "a stranger has");
    }
}
