//! What a balancer is told at its start: one YAML file, or nothing. Every default lives here (those of services come
//! from the core); unknown keys are refused and all mistakes are listed at once, with their places. Refuses to act:
//! sockets, files and services are opened by others. The file is read once, at the start.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lookaside_core::{
    config::ServiceConfig,
    model::{EndpointSpec, Instance, ServiceName},
};

mod file;
mod value;

pub use value::Network;

/// Why a configuration cannot be used. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// Which file.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// Not YAML, an unknown key, or a value that is not of its kind. The parser stops at the first.
    #[error("{path}:{line}:{column}: {reason}")]
    Malformed {
        /// Which file.
        path: String,
        /// Where, counted from 1; 0 when unknown.
        line: u64,
        /// Where, counted from 1; 0 when unknown.
        column: u64,
        /// What is wrong.
        reason: String,
    },
    /// Well-formed, but it makes no sense. All mistakes, in the order of the file.
    #[error("{}", .problems.iter().map(|p| format!("{path}:{p}")).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// Which file.
        path: String,
        /// What is wrong.
        problems: Vec<Problem>,
    },
}

/// One mistake and its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Counted from 1.
    pub line: u64,
    /// Counted from 1.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.reason)
    }
}

/// Everything a balancer is told. The default is a loopback balancer with self-registration.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// Who it is.
    pub node: Node,
    /// Where overrides outlive a restart; `None` keeps nothing.
    pub data_dir: Option<PathBuf>,
    /// How services are balanced that say nothing else, self-registered ones among them.
    pub defaults: ServiceConfig,
    /// Services that it knows from the start.
    pub services: Vec<Service>,
    /// Who may register endpoints.
    pub registration: Registration,
    /// What peers may take.
    pub limits: Limits,
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
    /// Who serves it; `None` leaves that to registrations, an empty list says nobody does.
    pub endpoints: Option<Vec<EndpointSpec>>,
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
    /// Open streams on one connection; a further one waits at the peer.
    pub streams_per_connection: u32,
    /// Life of a connection, within 10 % either way; then it is told to go away.
    pub connection_age: Duration,
    /// How long calls may go on after that; then it is cut.
    pub connection_age_grace: Duration,
    /// Time for the first bytes of HTTP/2; then it is cut.
    pub handshake_deadline: Duration,
    /// Silence after which the peer is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Time it has to give one; then it is cut.
    pub keepalive_timeout: Duration,
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
            streams_per_connection: 1_000,
            connection_age: Duration::from_secs(30 * 60),
            connection_age_grace: Duration::from_secs(30),
            handshake_deadline: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
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
        let name = path.display().to_string();
        let text =
            fs::read_to_string(path).map_err(|e| Error::Unreadable { path: name.clone(), reason: e.to_string() })?;
        Self::parse(&name, &text)
    }

    /// Reads a text; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &str, text: &str) -> Result<Self, Error> {
        file::parse(path, text)
    }
}

/// The host's own name, where the system tells it in a file.
fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && Instance::parse(name).is_ok()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
