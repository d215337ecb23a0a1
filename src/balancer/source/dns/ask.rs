//! Questions to name servers, one at a time, and what their replies say. Nothing is cached and no file of hosts is looked
//! at: when to ask again is decided elsewhere, by how long the records live. A reply that could be read in two ways is a
//! failure, never an absence.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{NameServerConfig, ResolverOpts},
    net::{
        DnsError, NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle as _, FirstAnswer as _},
    },
    proto::{
        op::{DnsRequestOptions, Message, Query, ResponseCode},
        rr::{DNSClass, Name, RData, Record, RecordType},
    },
};
use lookaside_core::model::{Instance, printable};
use tokio::sync::Semaphore;

use crate::{
    limits::{DNS_ALIASES_MAX, DNS_LOOKUPS_PER_SOURCE_MAX, DNS_REPLY_WAIT},
    telemetry::DNS_LOOKUPS_TOTAL,
};

/// Tries per question, where fewer name servers are known than this: a lost packet is no answer.
const TRIES_MIN: usize = 2;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("{server} does not answer within {DNS_REPLY_WAIT:?}")]
    TimedOut { server: SocketAddr },
    #[error("{server} answers {code}")]
    Code { server: SocketAddr, code: String },
    #[error("{server} answers what cannot be used: {reason}")]
    Unusable { server: SocketAddr, reason: String },
    #[error("{server}: {reason}")]
    Unreachable { server: SocketAddr, reason: String },
    #[error("no name server is known: {reason}")]
    NoServer { reason: String },
    #[error("there was no time left to ask")]
    Late,
}

impl Error {
    /// For the metric.
    fn label(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } | Self::Late => "timeout",
            Self::Code { code, .. } if code == "SERVFAIL" => "servfail",
            Self::Code { .. } => "refused",
            Self::Unusable { .. } => "unusable",
            Self::Unreachable { .. } | Self::NoServer { .. } => "unreachable",
        }
    }
}

/// How a name server says that there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    /// NXDOMAIN: nothing has this name.
    NoName,
    /// The name is there, and has no such records.
    NoRecords,
    /// SRV records say that the service is not offered (RFC 2782: the target is the root).
    NotOffered,
}

impl Absence {
    /// For the metric.
    fn label(self) -> &'static str {
        match self {
            Self::NoName => "nxdomain",
            Self::NoRecords | Self::NotOffered => "empty",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::NoName => "no such name (NXDOMAIN)",
            Self::NoRecords => "no records",
            Self::NotOffered => "not offered (the target is `.`)",
        }
    }
}

/// What a question came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer<T> {
    /// Records, never none.
    Found { records: Vec<T>, lives: Duration, from: SocketAddr },
    /// The name server knows that there are none.
    Empty { absence: Absence, lives: Option<Duration>, from: SocketAddr },
    /// Nobody knows.
    Failed(Error),
}

/// An SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Srv {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) target: Target,
}

/// A name that has addresses; ordered and compared without regard to case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target(Arc<str>);

impl Target {
    /// `None` where it could not be the name on a certificate either.
    pub(super) fn new(name: &Name) -> Option<Self> {
        let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        (!text.is_empty() && Instance::parse(&text).is_ok()).then(|| Self(text.into()))
    }

    /// Without a dot at its end.
    pub(super) fn text(&self) -> &Arc<str> {
        &self.0
    }
}

/// Name servers, and how many questions they are asked at once.
pub(super) struct Asker {
    servers: Vec<(SocketAddr, NameServerPool<TokioRuntimeProvider>)>,
    /// The one that answered last is asked first.
    first: AtomicUsize,
    own: Semaphore,
    all: Arc<Semaphore>,
}

/// A reply that is not a failure, and who gave it.
struct Reply {
    from: SocketAddr,
    message: Result<Message, (Absence, Option<Duration>)>,
}

impl Asker {
    /// Asks these, in this order. `all` is shared by everybody who asks.
    pub(super) fn new(servers: &[SocketAddr], all: Arc<Semaphore>) -> Self {
        let servers = servers.iter().map(|server| (*server, pool(*server))).collect();
        Self { servers, first: AtomicUsize::new(0), own: Semaphore::new(DNS_LOOKUPS_PER_SOURCE_MAX), all }
    }

    /// The addresses of one family that a name has.
    pub(super) async fn addresses(&self, name: &Name, v4: bool) -> Answer<IpAddr> {
        let kind = if v4 { RecordType::A } else { RecordType::AAAA };
        self.ask(name, kind, address).await.0
    }

    /// The SRV records of a name, and the addresses of their targets that came with them.
    pub(super) async fn srv(&self, name: &Name) -> (Answer<Srv>, Vec<Record>) {
        let (answer, additionals) = self.ask(name, RecordType::SRV, srv).await;
        (answer, additionals)
    }

    /// Follows aliases as far as the reply does, and asks for the rest of the way.
    async fn ask<T>(
        &self,
        name: &Name,
        kind: RecordType,
        take: impl Fn(&RData) -> Option<Result<T, Absence>>,
    ) -> (Answer<T>, Vec<Record>) {
        let (mut name, mut life) = (name.clone(), u32::MAX);
        // No search list: whoever asks has thought of that.
        name.set_fqdn(true);
        for _ in 0..=DNS_ALIASES_MAX {
            let reply = self.reply(&name, kind).await;
            let (from, message) = match reply {
                Err(error) => return (Answer::Failed(error), Vec::new()),
                Ok(Reply { from, message: Err((absence, lives)) }) => {
                    count(absence.label());
                    return (Answer::Empty { absence, lives, from }, Vec::new());
                }
                Ok(Reply { from, message: Ok(message) }) => (from, message),
            };
            let reading = read(&message, &name, kind, &take);
            count(match &reading {
                Reading::Found { .. } | Reading::Alias { .. } => "found",
                Reading::Empty(absence) => absence.label(),
                Reading::Unusable(_) => "unusable",
            });
            match reading {
                Reading::Found { records, life: own } => {
                    let lives = Duration::from_secs(u64::from(own.min(life)));
                    return (Answer::Found { records, lives, from }, message.additionals);
                }
                Reading::Empty(absence) => return (Answer::Empty { absence, lives: None, from }, Vec::new()),
                Reading::Unusable(reason) => {
                    let reason = reason.to_owned();
                    return (Answer::Failed(Error::Unusable { server: from, reason }), Vec::new());
                }
                Reading::Alias { of, life: own } => (name, life) = (of, own.min(life)),
            }
        }
        let server = self.servers.first().map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |(server, _)| *server);
        let reason = format!("more than {DNS_ALIASES_MAX} aliases in a row");
        (Answer::Failed(Error::Unusable { server, reason }), Vec::new())
    }

    /// The first reply of a name server that is not a failure; otherwise the last failure.
    async fn reply(&self, name: &Name, kind: RecordType) -> Result<Reply, Error> {
        // They are never closed.
        let _own = self.own.acquire().await;
        let _all = self.all.acquire().await;
        let first = self.first.load(Ordering::Relaxed);
        let mut last = Error::NoServer { reason: "the list is empty".to_owned() };
        for (at, (server, pool)) in (0..self.servers.len().max(TRIES_MIN)).filter_map(|turn| {
            let at = (first + turn) % self.servers.len().max(1);
            Some((at, self.servers.get(at)?))
        }) {
            let reply =
                pool.lookup(Query::query(name.clone(), kind), DnsRequestOptions::default()).first_answer().await;
            match understood(*server, reply.map(|reply| reply.into_message())) {
                Ok(message) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(Reply { from: *server, message });
                }
                Err(error) => {
                    count(error.label());
                    last = error;
                }
            }
        }
        Err(last)
    }
}

/// A pool of one: with several the quickest to say SERVFAIL would speak for all.
fn pool(server: SocketAddr) -> NameServerPool<TokioRuntimeProvider> {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    let mut options = ResolverOpts::default();
    options.timeout = DNS_REPLY_WAIT;
    options.max_active_requests = DNS_LOOKUPS_PER_SOURCE_MAX;
    let tls = TlsConfig::new().expect("without TLS there is nothing that could fail");
    NameServerPool::from_config([config], Arc::new(PoolContext::new(options, tls)), TokioRuntimeProvider::default())
}

/// Tells absences from failures. What says neither is a failure.
#[allow(clippy::type_complexity, reason = "two kinds of reply, one of failure")]
fn understood(
    server: SocketAddr,
    reply: Result<Message, NetError>,
) -> Result<Result<Message, (Absence, Option<Duration>)>, Error> {
    let code = |code: ResponseCode| match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => printable(&format!("{other} (code {})", u16::from(other))),
    };
    let unusable = |reason: &str| Error::Unusable { server, reason: printable(reason) };
    match reply {
        Ok(message) => match message.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(Ok(message)),
            other => Err(Error::Code { server, code: code(other) }),
        },
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
            ResponseCode::NXDomain => Ok(Err((Absence::NoName, none.negative_ttl.map(seconds)))),
            // It names others who may know.
            ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
                Err(unusable("a referral to other name servers"))
            }
            ResponseCode::NoError => Ok(Err((Absence::NoRecords, none.negative_ttl.map(seconds)))),
            other => Err(Error::Code { server, code: code(other) }),
        },
        Err(NetError::Dns(DnsError::ResponseCode(other))) => Err(Error::Code { server, code: code(other) }),
        Err(NetError::Timeout) => Err(Error::TimedOut { server }),
        Err(NetError::Io(error)) => Err(Error::Unreachable { server, reason: error.to_string() }),
        Err(NetError::Truncated) => Err(unusable("cut off, over TCP as well")),
        Err(other) => Err(unusable(&other.to_string())),
    }
}

fn count(result: &'static str) {
    metrics::counter!(DNS_LOOKUPS_TOTAL, "result" => result).increment(1);
}

fn seconds(life: u32) -> Duration {
    Duration::from_secs(u64::from(life))
}

/// What one reply says of a name.
#[derive(Debug, PartialEq, Eq)]
enum Reading<T> {
    Found {
        records: Vec<T>,
        life: u32,
    },
    /// It is an alias of a name that the reply says nothing of.
    Alias {
        of: Name,
        life: u32,
    },
    Empty(Absence),
    Unusable(&'static str),
}

fn read<T>(
    message: &Message,
    asked: &Name,
    kind: RecordType,
    take: impl Fn(&RData) -> Option<Result<T, Absence>>,
) -> Reading<T> {
    let (mut name, mut life) = (asked.clone(), u32::MAX);
    for _ in 0..=DNS_ALIASES_MAX {
        let own = |kind: RecordType| {
            let answers = message.answers.iter().filter(|record| record.dns_class == DNSClass::IN);
            answers.filter(|record| record.name == name).filter(move |record| record.record_type() == kind)
        };
        let mut records = own(kind).peekable();
        if records.peek().is_some() {
            return taken(records, life, take);
        }
        let Some(alias) = own(RecordType::CNAME).next() else {
            return match message.metadata.response_code {
                ResponseCode::NXDomain => Reading::Empty(Absence::NoName),
                _ if name != *asked => Reading::Alias { of: name, life },
                _ => Reading::Unusable("records of another name, or of another kind"),
            };
        };
        life = life.min(alias.ttl);
        if let RData::CNAME(of) = &alias.data {
            name = of.0.clone();
        }
    }
    Reading::Unusable("aliases in a circle")
}

/// Records that could not be called are left out.
fn taken<'a, T>(
    records: impl Iterator<Item = &'a Record>,
    life: u32,
    take: impl Fn(&RData) -> Option<Result<T, Absence>>,
) -> Reading<T> {
    let (mut found, mut life, mut absent) = (Vec::new(), life, None);
    for record in records {
        life = life.min(record.ttl);
        match take(&record.data) {
            Some(Ok(record)) => found.push(record),
            Some(Err(absence)) => absent = Some(absence),
            None => {}
        }
    }
    match (found.is_empty(), absent) {
        (false, _) => Reading::Found { records: found, life },
        (true, Some(absence)) => Reading::Empty(absence),
        (true, None) => Reading::Unusable("no record of it could be called"),
    }
}

/// 0.0.0.0 is what filters answer for names that they block.
fn address(data: &RData) -> Option<Result<IpAddr, Absence>> {
    let address = match data {
        RData::A(address) => IpAddr::V4(address.0),
        RData::AAAA(address) => IpAddr::V6(address.0),
        _ => return None,
    };
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    (!address.is_unspecified() && !address.is_multicast() && !broadcast).then_some(Ok(address))
}

fn srv(data: &RData) -> Option<Result<Srv, Absence>> {
    let RData::SRV(srv) = data else { return None };
    if srv.target.is_root() {
        return Some(Err(Absence::NotOffered));
    }
    let target = Target::new(&srv.target)?;
    (srv.port != 0).then_some(Ok(Srv { priority: srv.priority, weight: srv.weight, port: srv.port, target }))
}

/// Addresses that came with SRV records without being asked for, by target.
pub(super) struct ByTarget<'a>(BTreeMap<(Target, bool), Vec<&'a Record>>);

impl<'a> ByTarget<'a> {
    pub(super) fn new(records: &'a [Record]) -> Self {
        let mut by_target: BTreeMap<(Target, bool), Vec<&Record>> = BTreeMap::new();
        for record in records.iter().filter(|record| record.dns_class == DNSClass::IN) {
            let v4 = match record.record_type() {
                RecordType::A => true,
                RecordType::AAAA => false,
                _ => continue,
            };
            if let Some(target) = Target::new(&record.name) {
                by_target.entry((target, v4)).or_default().push(record);
            }
        }
        Self(by_target)
    }

    /// Those of one family. A set of records is sent whole or not at all, so what is there is complete; what is not there
    /// has to be asked for.
    pub(super) fn addresses(&self, target: &Target, v4: bool, from: SocketAddr) -> Option<Answer<IpAddr>> {
        let records = self.0.get(&(target.clone(), v4))?;
        match taken(records.iter().copied(), u32::MAX, address) {
            Reading::Found { records, life } => Some(Answer::Found { records, lives: seconds(life), from }),
            Reading::Alias { .. } | Reading::Empty(_) | Reading::Unusable(_) => None,
        }
    }
}
