//! The wiring: the one place that knows all rooms. It opens the listeners, starts everything in order, and at the end
//! stops it in order, so that clients and backends have moved on before their connections go.

use std::{io, net::SocketAddr};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Why a balancer did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for the {listener} listener: {reason}")]
    Listen {
        /// client, admin or metrics.
        listener: &'static str,
        /// As configured.
        address: SocketAddr,
        /// The system's words.
        reason: io::Error,
    },
    /// A part of the balancer failed; the log has its words.
    #[error("the balancer failed: {0}")]
    Failed(#[from] tokio::task::JoinError),
}

/// Where a balancer listens, ports chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Picks, reports, health, reflection.
    pub client: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`.
    pub metrics: SocketAddr,
}

/// A balancer at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until it has stopped, which it does within ten seconds after its token was cancelled.
    ///
    /// # Errors
    /// [`Error::Failed`] when it stopped by a fault of its own.
    pub async fn finished(self) -> Result<(), Error> {
        Ok(self.task.await?)
    }
}

/// Starts a balancer; it is ready when this returns. Cancel `shutdown` to stop it: readiness goes first, then clients
/// and backends are told to move on, then connections are closed.
///
/// # Errors
/// [`Error::Listen`] when an address is taken; nothing is left running then.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Running, Error> {
    let (client, client_address) = listen("client", config.listen.client).await?;
    let (admin, admin_address) = listen("admin", config.listen.admin).await?;
    let (metrics, metrics_address) = listen("metrics", config.listen.metrics).await?;
    let addresses = Addresses { client: client_address, admin: admin_address, metrics: metrics_address };
    let task = tokio::spawn(async move {
        shutdown.cancelled().await;
        drop((client, admin, metrics));
    });
    Ok(Running { addresses, task })
}

async fn listen(listener: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |reason| Error::Listen { listener, address, reason };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok((socket, address))
}
