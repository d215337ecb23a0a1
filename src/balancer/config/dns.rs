//! A DNS name whose records say who serves a service, as the configuration has it. Who asks, and what is made of the
//! answers, is the source's business.

use std::{net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use lookaside_core::model::{self, Locality, ServiceName, SourceId};

/// The name, how it is asked, and what its records say nothing about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Without a dot at its end.
    pub name: String,
    /// Which records it has.
    pub records: Records,
    /// Who is asked, in this order; none means those of the system's `resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Whether the name is tried below the names of the system's search list as well.
    pub search: bool,
    /// It is asked again no sooner than this, however short the records live.
    pub refresh_min: Duration,
    /// And no later than this, however long they live.
    pub refresh_max: Duration,
    /// Where the endpoints run.
    pub locality: Locality,
    /// Failover tier of the endpoints; with SRV records the tier of the best of them.
    pub priority: u32,
    /// Name that certificates must show; `None` means the name that the address was found under.
    pub tls_name: Option<Arc<str>>,
}

impl Dns {
    /// The source that the name of a service is. Two services share nothing, even where they share a name.
    ///
    /// # Errors
    /// When the name of the service is so long that the source would have no name.
    pub fn source(service: &ServiceName) -> Result<SourceId, model::Error> {
        SourceId::parse(&format!("dns:{service}"))
    }
}

/// Which records a name has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// Addresses, all with one port and one weight.
    Addresses {
        /// Whether A records are asked for.
        v4: bool,
        /// Whether AAAA records are asked for.
        v6: bool,
        /// Where the endpoints listen.
        port: NonZeroU16,
        /// Share wanted against other endpoints of the service.
        weight: u32,
    },
    /// SRV records, with ports, priorities and weights of their own.
    Srv,
}
