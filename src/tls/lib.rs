//! Connections over TLS, for everybody here who makes or takes one: the balancer, its probes, the SDK, the command line.
//! Certificates come from PEM files and are read again when the files change; connections made before go on. Names are
//! verified always. HTTP/2 is the one protocol agreed to.
//!
//! It refuses to trust the roots of the system (a fleet has a CA of its own), to resume sessions (a resumed one would
//! outlive the certificate it was opened with), and to decide who may do what: it says who is at the other end, no more.
//!
//! `rustls` with `ring` does the work; the decision note on TLS says why.

mod accept;
mod connect;
mod error;
mod expiry;
#[cfg(feature = "incoming")]
mod incoming;
mod io;
mod pem;
mod reload;

pub use accept::{Acceptor, AcceptorBuilder, ClientAuth};
pub use connect::{Connector, Tls, TlsBuilder, dial, is_loopback};
pub use error::Error;
pub use expiry::Validity;
#[cfg(feature = "incoming")]
pub use incoming::incoming;
pub use io::{Io, Trouble};
pub use reload::{LOOK_PERIOD, Look, Material, Reloading};

#[cfg(test)]
mod tests;
