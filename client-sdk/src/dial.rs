//! Every connection of the SDK is made here: to endpoints, and to balancers for the pick stream and the reporter. What goes
//! over it is for others to know.

use lookaside_tls::Connector;
use tonic::transport;

pub(crate) use lookaside_tls::{Error, Io, Trouble, dial};

use crate::{Tls, error::flatten, resolve::Place};

/// What this library calls itself.
pub(crate) const SDK: &str = concat!("lookaside-rust/", env!("CARGO_PKG_VERSION"));

/// A channel to a balancer, plain or over TLS. It is addressed by the name that it was configured by; with TLS it has to show
/// the host of that name, or the name that `tls` expects. `tune` sets what else the channel is to be like.
/// Beside it, what TLS has to say when it breaks.
pub(crate) async fn balancer(
    place: &Place,
    tls: Option<&Tls>,
    tune: impl FnOnce(transport::Endpoint) -> transport::Endpoint,
) -> Result<(transport::Channel, Trouble), String> {
    let connector = Connector::new(tls.cloned(), &place.name);
    let endpoint =
        transport::Endpoint::from_shared(format!("http://{}", place.address)).map_err(|error| flatten(&error))?;
    // What calls name as their origin; a name that is no URI was refused before it came here.
    let endpoint = match connector.origin().parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    };
    let trouble = connector.trouble();
    match tune(endpoint).connect_with_connector(connector).await {
        Ok(channel) => Ok((channel, trouble)),
        Err(error) => Err(trouble.said().map_or_else(|| flatten(&error), str::to_owned)),
    }
}
