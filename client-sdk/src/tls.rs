//! TLS between clients, backends and balancers: whom to trust, who one is, and whose name has to be on the certificate.
//!
//! ```no_run
//! use lookaside_sdk::{Channel, Tls};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let tls = Tls::builder().ca_file("/tls/ca.crt").identity_files("/tls/tls.crt", "/tls/tls.key").build()?;
//! let channel = Channel::builder("greeter").balancers(["lb-0:7400"]).balancer_tls(tls.clone()).tls(tls).connect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! - The CA is one's own: a file or a text in PEM. The roots of the system are not used, since they would let anybody with a
//!   public certificate for a name be an endpoint of that name.
//! - The **name** of an endpoint is what its list says (`tls_name`), and the host of its address where the list says nothing.
//!   It is verified on every connection. A balancer can thus steer a client among those whom the client trusts itself, and to
//!   nobody else. An endpoint that shows another name is never called; the balancer is told, and so is the caller.
//! - Files are read again when they change, within a second of the next connection. Connections made before go on.
//! - A backend that is to show a certificate of its own takes connections with an [`Acceptor`]; with the feature `reporter`
//!   `incoming` makes of it what tonic's `serve_with_incoming` wants.

#[cfg(feature = "reporter")]
pub use lookaside_tls::incoming;
pub use lookaside_tls::{Acceptor, AcceptorBuilder, ClientAuth, Error, Io, Tls, TlsBuilder, Validity};
