//! When a process is asked to end.

use tokio::signal::unix::{SignalKind, signal};

/// Ends at SIGTERM, which is how service managers and Kubernetes ask a process to leave, or at SIGINT (Ctrl-C). Never where
/// the system does not let the process listen: then there is no end but a kill. It listens from the first poll on.
pub async fn asked_to_leave() {
    let both = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = both else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
