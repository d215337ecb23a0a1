//! Every connection of the SDK is made here: to endpoints, and to balancers for the pick stream and the reporter. What goes
//! over it is for others to know.

use lookaside_tls::Connector;
use tonic::transport;

pub(crate) use lookaside_tls::{Error, Io, dial};

use crate::{Tls, resolve::Place};

/// A channel to a balancer, plain or over TLS. It is addressed by the name that it was configured by; with TLS it has to show
/// the host of that name, or the name that `tls` expects. `tune` sets what else the channel is to be like.
pub(crate) async fn balancer(
    place: &Place,
    tls: Option<&Tls>,
    tune: impl FnOnce(transport::Endpoint) -> transport::Endpoint,
) -> Result<transport::Channel, transport::Error> {
    let connector = Connector::new(tls.cloned(), &place.name);
    let endpoint = transport::Endpoint::from_shared(format!("http://{}", place.address))?;
    // What calls name as their origin; a name that is no URI was refused before it came here.
    let endpoint = match connector.origin().parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    };
    tune(endpoint).connect_with_connector(connector).await
}
