//! What a balancer is told at its start: one YAML file, or nothing. Every default lives here (those of services come
//! from the core); unknown keys are refused and all mistakes are listed at once, with their places. Refuses to act:
//! sockets and services are opened by others, and when to read the file again is theirs to say.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::limits::CONFIG_FILE_BYTES_MAX;

use lookaside_core::{
    config::ServiceConfig,
    model::{EndpointSpec, Instance, ServiceName},
};

mod dns;
mod file;
mod live;
mod problem;
mod security;
mod tree;
mod value;

pub use dns::{Dns, Records};
use file::Reading;
pub(crate) use live::{InForce, Live, Refused};
pub use problem::{Code, Error, Location, Problem, nearest};
pub use security::{AllowPlaintext, ListenerTls, Security, Token, exposed_reason};
pub use value::Network;

/// Everything a balancer is told. The default is a loopback balancer with self-registration.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// Who may listen in, and who may order.
    pub security: Security,
    /// Who it is.
    pub node: Node,
    /// Where overrides and the last known good lists outlive a restart; `None` keeps nothing.
    pub data_dir: Option<PathBuf>,
    /// How services are balanced that say nothing else, self-registered ones among them.
    pub defaults: ServiceConfig,
    /// Services that it knows from the start.
    pub services: Vec<Service>,
    /// Who may register endpoints.
    pub registration: Registration,
    /// What peers may take.
    pub limits: Limits,
    /// Where it was read from; `None` when it was not.
    pub origin: Option<Origin>,
}

/// A file that is in use, and what of it a running balancer cannot change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which file.
    pub path: PathBuf,
    /// Of its text.
    pub(crate) digest: u64,
    /// Of the file; flags may say otherwise.
    listen: Listen,
    security: Security,
    node: Node,
    data_dir: Option<PathBuf>,
    limits: Limits,
}

impl Origin {
    fn new(path: &Path, digest: u64, config: &Config) -> Self {
        let Config { listen, security, node, data_dir, limits, .. } = config.clone();
        Self { path: path.to_owned(), digest, listen, security, node, data_dir, limits }
    }

    /// Reads the file again, for a balancer that runs: its digest, and what it says. `None` when its digest is still this
    /// one.
    pub(crate) fn read_again(&self, same: Option<u64>) -> Option<(u64, Result<Config, Error>)> {
        let text = read(&self.path);
        let digest = digest(&text);
        if same == Some(digest) {
            return None;
        }
        // Whoever writes in place begins with nothing, and nothing is a valid file at a start.
        let text = text.and_then(|text| {
            if text.trim().is_empty() { Err("the file is empty; half written?".to_owned()) } else { Ok(text) }
        });
        Some((digest, Config::understand(&self.path, text, Reading::Again(self))))
    }
}

/// Where a balancer listens. Port 0 lets the kernel choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Picks, reports, health, reflection.
    pub client: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`.
    pub metrics: SocketAddr,
}

/// Who a balancer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique among the replicas; signs overrides.
    pub id: String,
}

/// A service known from the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What clients ask for.
    pub name: ServiceName,
    /// How it is balanced.
    pub config: ServiceConfig,
    /// Who serves it; `None` leaves that to others, an empty list says nobody does.
    pub endpoints: Option<Vec<EndpointSpec>>,
    /// The DNS name that says who serves it, besides.
    pub dns: Option<Dns>,
}

/// Who may register endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Whether anybody may.
    pub enabled: bool,
    /// Whether a backend may register an address other than the one it connects from, host names included.
    pub allow_foreign_addresses: bool,
    /// Networks whose addresses any backend may register.
    pub allow: Vec<Network>,
}

/// What peers may take. `Limits` of one listener each, where they are about connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; a further one is closed at once and counted.
    pub connections: usize,
    /// Open connections of one peer (an IPv4 address, an IPv6 network of 64 bits); a further one is closed at once.
    pub connections_per_peer: usize,
    /// Open streams on one connection; a further one waits at the peer.
    pub streams_per_connection: u32,
    /// Open streams of one peer; a further one is refused with the advice to come back later.
    pub streams_per_peer: usize,
    /// Life of a connection, within 10 % either way; then it is told to go away.
    pub connection_age: Duration,
    /// How long calls may go on after that; then it is cut.
    pub connection_age_grace: Duration,
    /// Time without an open stream; then it is told to go away.
    pub connection_idle: Duration,
    /// Time to the first request, TLS and the first bytes of HTTP/2 included; then it is cut.
    pub handshake_deadline: Duration,
    /// Silence after which the peer is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Time it has to give one; then it is cut.
    pub keepalive_timeout: Duration,
    /// Memory that the process may take, MiB; close to it newcomers are turned away. 0: no ceiling.
    pub memory_mib: u64,
    /// Health checks under way; a further one waits.
    pub checks_at_once: usize,
    /// Time for streams to move on when the balancer is told to stop; then they are cut.
    pub drain_deadline: Duration,
}

impl Default for Listen {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self { client: loopback(7400), admin: loopback(7401), metrics: loopback(7402) }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { id: host_name().unwrap_or_else(|| "lookaside".to_owned()) }
    }
}

impl Default for Registration {
    fn default() -> Self {
        Self { enabled: true, allow_foreign_addresses: false, allow: Vec::new() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_peer: 2_000,
            streams_per_connection: 1_000,
            streams_per_peer: 25_000,
            connection_age: Duration::from_secs(30 * 60),
            connection_age_grace: Duration::from_secs(30),
            connection_idle: Duration::from_secs(5 * 60),
            handshake_deadline: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            memory_mib: 0,
            checks_at_once: 256,
            drain_deadline: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`] names the file, the line, the column and the reason; nothing of a file with a mistake is used.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::understand(path, read(path), Reading::Whole)
    }

    /// Reads a file that a balancer is started with, and flags besides: whether a listener is exposed by both together is
    /// judged when it is started.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_for_start(path: &Path) -> Result<Self, Error> {
        Self::understand(path, read(path), Reading::Start)
    }

    fn understand(path: &Path, text: Result<String, String>, reading: Reading<'_>) -> Result<Self, Error> {
        let name = path.display().to_string();
        let digest = digest(&text);
        let text = text.map_err(|reason| {
            Error::new(&name, "", vec![Problem::new(Location::default(), Code::Unreadable, reason)])
        })?;
        let config = file::parse(&name, &text, reading)?;
        Ok(Self { origin: Some(Origin::new(path, digest, &config)), ..config })
    }

    /// Reads a text; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &str, text: &str) -> Result<Self, Error> {
        file::parse(path, text, Reading::Whole)
    }
}

/// The text of a file, or why there is none.
fn read(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(format!("larger than {} MiB", CONFIG_FILE_BYTES_MAX >> 20));
    }
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
}

/// Tells one text from another, within one process.
fn digest(text: &Result<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The host's own name, where the system tells it in a file.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && Instance::parse(name).is_ok()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
