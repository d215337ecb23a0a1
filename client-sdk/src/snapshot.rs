//! What a channel holds at one moment, for people and for tests. A copy: nothing here can act on the channel.

/// What a channel holds: its list, where that came from, and how each endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The service asked for.
    pub service: String,
    /// Who this client is to its balancer.
    pub client_id: String,
    /// Where the endpoints in use came from.
    pub source: ListSource,
    /// Mode of the list.
    pub mode: Mode,
    /// The balancer's words on why the list is as it is; empty when there is nothing to say.
    pub note: String,
    /// Version of the list; `None` when it is not from a balancer.
    pub version: Option<Version>,
    /// Digest of the list as the balancer gave it; 0 when it is not from one.
    pub digest: u64,
    /// False while the balancer was still settling: the endpoints held before are then used beside those it named.
    pub complete: bool,
    /// How the balancer wants endpoints chosen.
    pub policy: crate::picker::Policy,
    /// Where the balancer connected to is: its address and port.
    pub balancer: Option<String>,
    /// Why there is no list, or no balancer; empty when all is well.
    pub trouble: String,
    /// How long ago a balancer last stood by the list; `None` without one.
    pub list_age: Option<std::time::Duration>,
    /// Why the cache on disk is not used or not written; empty when all is well, or there is none.
    pub cache_trouble: String,
    /// In the order of the list; those named with weight 0 included.
    pub endpoints: Vec<EndpointSnapshot>,
}

/// One endpoint of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// `host:port`
    pub address: String,
    /// region/zone/subzone; empty when unknown.
    pub locality: String,
    /// Share of calls wanted against the others of its priority; 0 means no new calls.
    pub weight: u32,
    /// Failover tier, 0 is best.
    pub priority: u32,
    /// How it is from here.
    pub state: EndpointState,
    /// Calls in flight, those that wait for a stream included.
    pub in_flight: u32,
    /// Why it is not READY, in words; empty when it is.
    pub trouble: String,
}

/// How an endpoint is, as this client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointState {
    /// Not wanted now: a lower tier, or weight 0. No connection is kept.
    Idle,
    /// A connection is being made.
    Connecting,
    /// Connected; gets calls.
    Ready,
    /// No connection could be made; the next attempt is due soon.
    Failed,
    /// Connected, but its calls fail or stay unanswered: it gets a call now and then, to see whether that is over.
    Aside,
}

/// Where the endpoints in use came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListSource {
    /// Nothing yet.
    None,
    /// A balancer that is connected.
    Balancer,
    /// A balancer that is away: its last list keeps serving.
    LastGood,
    /// The disk: no balancer has answered since the start, and this is the last list of the run before.
    Cache,
    /// The configured fallback: no list has ever come.
    Fallback,
    /// A `static://` target.
    Static,
}

/// Mode of a list; what the balancer thinks of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// There is no list, or its mode is not one this library knows.
    Unknown,
    /// Nothing unusual.
    Normal,
    /// Too few are usable: health is ignored rather than crush the rest.
    Panic,
    /// The client's own zone is too weak: other zones serve beside it.
    ZoneFailover,
    /// The balancer doubts what it sees and keeps the last good list.
    LastGood,
    /// Nothing to offer, with proof.
    Empty,
}

/// Orders the lists of one balancer: sequences compare within one epoch only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Random at each start of a balancer.
    pub epoch: u64,
    /// Grows with each list.
    pub sequence: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As the command line shows it; two epochs that begin alike are one in 65,536.
        write!(f, "{:04x}:{}", self.epoch >> 48, self.sequence)
    }
}
