//! What says how endpoints are: checks that the balancer makes and reports that backends send. A signal turns what it
//! sees into facts at the edge, refuses what is malformed, and decides nothing.

use std::sync::Arc;

use lookaside_core::model::{Address, ServiceName};
use tokio::sync::watch;

pub(crate) mod probe;
pub(crate) mod report;
#[cfg(test)]
mod testing;

/// A question about an endpoint of a service.
type Holds = dyn Fn(&ServiceName, &Address) -> bool + Send + Sync;

/// What front ends know about who still holds a list; a backend that drains waits for nobody to name it.
#[derive(Clone)]
pub(crate) struct Holders {
    /// Whether any connected client holds a list of the service that names the address with a weight.
    pub(crate) holds: Arc<Holds>,
    /// Changes whenever the answer may have.
    pub(crate) changed: watch::Receiver<u64>,
}
